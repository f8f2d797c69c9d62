"""The methods as rows of independent choices: a method is data, not a script.

A row holds values of configuration keys that differ from the keys' own defaults; what a file or a
flag says wins over it. So any choice goes with any other, and a new combination is a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Method:
    """What distinguishes one method from MTT, whose choices are the keys' defaults.

    Attributes:
        source: the paper.
        choices: values by key, of `buffer` and `distill` alike.
    """

    source: str
    choices: Mapping[str, Any]


_GSAM = {"rho_max": 0.01, "alpha": 0.3}
_DATM = {
    **_GSAM,
    "train_epochs": 100,
    "zca": True,
    "syn_steps": 80,
    "expert_epochs": 2,
    "pix_init": "samples_predicted_correctly",
    "labels": "soft",
    "Sequential_Generation": True,
    "threshold": 1.0,
}
_IDC = {
    "objective": "gradmatch",
    "factor": 2,
    "metric": "mse",
    "lr_img": 5e-3,
    "n_data": 2000,
    "mix_p": 0.5,
    "batch_train": 64,
    "Iteration": 1999,
    "eval_it": 200,
}
METHODS = {
    "mtt": Method("MTT: Cazenavette et al., CVPR 2022, arXiv 2203.11932", {}),
    "ftd": Method("FTD: Du et al., CVPR 2023, arXiv 2211.11004", {**_GSAM, "ema_decay": 0.999}),
    "tesla": Method(
        "TESLA: Cui et al., ICML 2023, arXiv 2211.10586",
        {"gradient": "tesla", "legacy_scale": True, "Iteration": 10000, "num_eval": 3},
    ),
    "datm": Method("DATM: Guo et al., ICLR 2024, arXiv 2310.05773", _DATM),
    "pad": Method(
        "PAD: Li et al., 2024, arXiv 2408.03360", {**_DATM, "keep": "loss", "batch_syn": 256}
    ),
    "pdd": Method("PDD: Chen et al., ICLR 2024, arXiv 2310.06982", {"num_intervals": 5}),
    "idc": Method("IDC: Kim et al., ICML 2022, arXiv 2205.14959", _IDC),
}
