"""What values keys may have: ranges of numbers, forms of texts."""

import dataclasses
import math
import os
import re
from typing import Any

from fastmtt.errors import FastmttError

# The least value of each number, and the most; those of _ABOVE and _BELOW must not reach it.
_LEAST: dict[str, float] = {
    **dict.fromkeys(("batch_train", "threads", "num_experts", "train_epochs", "ipc", "eval_it"), 1),
    **dict.fromkeys(("experts_at_once", "num_eval", "batch_syn", "expert_epochs", "syn_steps"), 1),
    **dict.fromkeys(("max_start_epoch", "max_experts", "expert_batch", "gradient", "segments"), 1),
    **dict.fromkeys(("canvas_size", "canvas_samples", "num_intervals", "factor"), 1),
    **dict.fromkeys(("seed", "Iteration", "epoch_eval_train", "min_start_epoch", "memory"), 0),
    **dict.fromkeys(("mom", "l2", "lr_img", "lr_lr", "published"), 0),
    **dict.fromkeys(("held_out", "lr_teacher", "expert_lr", "lr"), 0),
    **dict.fromkeys(("lr_y", "Momentum_y", "loss_ratio", "depth_ratio", "ema_decay"), 0),
    **dict.fromkeys(("rho_max", "rho_min", "alpha", "ratio", "init_ratio", "sparse_ratio"), 0),
    **dict.fromkeys(("rm_easy_ratio_first", "rm_easy_ratio_second", "threshold"), 0),
    **dict.fromkeys(("add_end_epoch", "rm_epoch_first", "rm_epoch_second"), 0),
    **dict.fromkeys(("res", "current_max_start_epoch", "expansion_end_epoch"), 1),
    **dict.fromkeys(("factor", "batch_real", "batch_syn_max", "inner_loop", "net_batch"), 1),
    **dict.fromkeys(("net_epoch", "n_data"), 1),
    **dict.fromkeys(("mom_img", "net_lr", "net_wd", "earlier_epochs", "early", "mix_p", "beta"), 0),
    "pt_from": -1,
    "Label_Model_Timestamp": -(2**31),
    "networks": 1,
    "num_val": 1,
    "score_epochs": 0,
}
_ABOVE = {"lr_teacher", "expert_lr", "lr", "threshold", "init_ratio", "net_lr", "beta"}
# At 1 these leave no weight, no image, or an average that stays as it began.
_BELOW = {"loss_ratio", "depth_ratio", "ratio", "ema_decay", "sparse_ratio"}
_BELOW |= {"rm_easy_ratio_first", "rm_easy_ratio_second"}
_MOST: dict[str, float] = {
    **dict.fromkeys(("mom", "mom_img", "mix_p"), 1),
    "threads": 1024,
    # Each step is drawn beforehand, and keeps two copies of the weights.
    "syn_steps": 100_000,
    "segments": 10_000,
    **dict.fromkeys(("canvas_size", "canvas_samples", "num_intervals", "factor"), 100),
    "published": 100,
    **dict.fromkeys(("Momentum_y", "loss_ratio", "depth_ratio", "ema_decay", "ratio"), 1),
    **dict.fromkeys(("init_ratio", "rm_easy_ratio_first", "rm_easy_ratio_second"), 1),
    "sparse_ratio": 1,
    **dict.fromkeys(("seed", "memory"), 2**63 - 1),
}
_MOST_WHOLE = 2**31 - 1  # of whole numbers that _MOST does not name: no machine has more of them


def check_ranges(config: Any) -> None:
    """Check every key of a configuration by its name.

    Raises:
        FastmttError: A number is out of its range, a text cannot be printed or is no name of its
            kind.
    """
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            _check_number(name, value)
    if config.device is not None and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device):
        raise FastmttError(f"device is {config.device!r}, wanted auto, cpu, cuda or cuda:<number>")


def _check_number(name: str, value: float) -> None:
    least, above = _LEAST[name], name in _ABOVE
    most = _MOST.get(name, _MOST_WHOLE if isinstance(value, int) else math.inf)
    reached = (above and value == least) or (name in _BELOW and value == most)
    if not least <= value <= most or reached or math.isinf(value):
        wanted = f"above {least}" if above else f"at least {least}"
        if name in _MOST or value > most:
            wanted += f" and {'below' if name in _BELOW else 'at most'} {most}"
        raise FastmttError(f"{name} is {_brief(value)}, wanted a number {wanted}")


def _check_text(name: str, value: str) -> None:
    if not value or not value.isprintable():
        raise FastmttError(f"{name} is {_brief(value)}, wanted text that can be printed")
    if name == "run_name" and (value in (".", "..") or "/" in value or os.sep in value):
        raise FastmttError(
            f"run_name is {_brief(value)}, wanted a folder's name without its path; give the path "
            "as save_path"
        )


def _brief(value: float | str) -> str:
    """Give a value as it is written, or its beginning where it is long."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."
