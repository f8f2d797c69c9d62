"""Keys of the published programs that are none of ours: what each was, what becomes of it.

MTT, FTD, TESLA, DATM, PAD and PDD share most keys, and those are ours too. Of the rest some never
did anything, some name what happens here anyway, and some name a choice this version does not
have. A row is lifted by removing it; a key that a command has goes to the command.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from fastmtt.config_file import Entry
from fastmtt.errors import FastmttError

# Keys without effect: the reason.
_IGNORED = {
    "lr_init": "no published program reads it",
    "batch_real": "it fed a loader from which no published program draws",
    "init_frozen": "PAD does not read it",
    "name": "PAD does not read it; run_name names a run",
    "parall_eva": "evaluation uses the device the run uses",
    "record_loss": "every loss is recorded in metrics.jsonl",
    "force_save": "images are saved at every evaluation, however many there are",
    "load_all": "trajectories are read in place, without loading their files",
    "save_interval": "every expert has a file of its own",
}
_IGNORED_IN_FILES = {"ema_decay": "DATM and PAD do not average images"}
_IGNORED_BY_EVALUATE = {
    "lr_teacher": "the published evaluation does not read it; lr sets the learning rate",
    "no_aug": "evaluation augments by dsa alone",
}


@dataclass(frozen=True)
class _Absent:
    """A choice that this version does not have.

    Attributes:
        choice: What it is and whose.
        same: Values that ask for what happens here anyway.
        switch: A key, and the value it has where no file sets it; where it is false the row's key
            has no effect.
    """

    choice: str
    same: tuple[Any, ...] = field(default=())
    switch: tuple[str, bool] | None = None


_SOFT_LABELS = _Absent("DATM's learned soft labels")
_GROWING = "DATM's growing range of start epochs"
_ANOTHER = "DATM's labels by another network"
_PART = _Absent("PAD's matching of a part of the weights", (0,))
_TEXTURE = "MTT's textures"
_GSAM = _Absent("FTD's GSAM experts")
_STAGES = _Absent("PDD's stages", (1,))
_PRUNED = "PDD's pruned experts"
_CURRICULUM = _Absent("PAD's curriculum of experts")

_ABSENT = {
    "lr_y": _SOFT_LABELS,
    "Momentum_y": _SOFT_LABELS,
    "threshold": _Absent("DATM's bound on the loss of a step"),
    "Sequential_Generation": _Absent(_GROWING, (False,)),
    "current_max_start_epoch": _Absent(_GROWING, (), ("Sequential_Generation", True)),
    "expansion_end_epoch": _Absent(_GROWING, (), ("Sequential_Generation", True)),
    "Initial_Step": _Absent(_GROWING, (), ("Sequential_Generation", True)),
    "learn_end_epoch": _Absent(_GROWING, (), ("Sequential_Generation", True)),
    "Initialize_Label_With_Another_Model": _Absent(_ANOTHER, (False,)),
    "Initialize_Label_Model": _Absent(_ANOTHER, ("",)),
    "Initialize_Label_Model_Dir": _Absent(_ANOTHER, ("",)),
    "Label_Model_Timestamp": _Absent("DATM's labels by an expert's snapshot", (-1,)),
    "loss_ratio": _PART,
    "depth_ratio": _PART,
    "texture": _Absent(_TEXTURE, (False,)),
    "canvas_size": _Absent(_TEXTURE, (), ("texture", False)),
    "canvas_samples": _Absent(_TEXTURE, (), ("texture", False)),
    "eval_mode": _Absent("evaluation on several networks, which evaluate does one by one", ("S",)),
    "max_files": _Absent("a number of files of ten experts, for which max_experts stands", (None,)),
    "ema_decay": _Absent("FTD's averaged images"),
    "rho_max": _GSAM,
    "rho_min": _GSAM,
    "alpha": _GSAM,
    "adaptive": _GSAM,
    "loss_type": _Absent("TESLA's other losses of experts", ("ce",)),
    "teacher_label": _Absent("TESLA's labels by an expert", (False,)),
    "random_trajectory": _Absent("TESLA's random trajectories", (False,)),
    "num_intervals": _STAGES,
    "start_interval": _STAGES,
    "start_sampling_epoch": _Absent("PDD's first epoch, for which min_start_epoch stands", (0,)),
    "use-random-pruning": _Absent(_PRUNED, (False,)),
    "sparse-ratio": _Absent(_PRUNED, (0,)),
    "sort_method": _CURRICULUM,
    "init_ratio": _CURRICULUM,
    "add_end_epoch": _CURRICULUM,
    "rm_epoch_first": _CURRICULUM,
    "rm_epoch_second": _CURRICULUM,
    "rm_easy_ratio_first": _CURRICULUM,
    "rm_easy_ratio_second": _CURRICULUM,
}

# Values that a key of ours has in the published programs only.
_ABSENT_VALUES = {
    ("pix_init", "samples_predicted_correctly"): "DATM's start images that an expert gets right",
}


def settle(entries: Sequence[Entry], known: Container[str], command: str) -> list[Entry]:
    """Take the published programs' own keys out, with a warning that names each and its reason.

    Args:
        entries: A file's entries, or the flags'; every name once.
        known: The command's own keys.
        command: buffer, distill or evaluate.

    Returns:
        The command's own keys, `device` as a name, and those that no table knows.

    Raises:
        FastmttError: Keys name choices that this version does not have; all in one sentence.
    """
    values = {entry.name: entry.value for entry in entries}
    kept, said = [], []
    lacking: dict[str, list[str]] = {}
    for entry in entries:
        absent = _absent_choice(entry, values, known)
        if absent:
            lacking.setdefault(absent, []).append(f"{entry.name}: {entry.text}")
        elif reason := _reason(entry, values, known, command):
            said.append(f"{entry.place}{entry.name} is ignored: {reason}")
        elif entry.name == "device" and isinstance(entry.value, list):
            said.append(
                f"{entry.place}device is a list of GPUs ({entry.text}), taken as auto: one device "
                "is used"
            )
            kept.append(entry.with_value("auto"))
        else:
            kept.append(entry)
    if lacking:
        source = entries[0].file or "the command line"
        wanted = "; ".join(f"{choice} ({', '.join(keys)})" for choice, keys in lacking.items())
        raise FastmttError(
            f"{source} asks for what this version does not have: {wanted}; take these keys out to "
            "go without"
        )
    for sentence in said:
        warnings.warn(sentence, stacklevel=4)
    return kept


def flag_value(text: str) -> Any:
    """Read a flag's value as YAML; text that is no YAML stays text."""
    try:
        return yaml.safe_load(text) if len(text) < 100 else text
    except (yaml.YAMLError, ValueError):
        return text


def _absent_choice(entry: Entry, values: dict[str, Any], known: Container[str]) -> str | None:
    if entry.name in known:
        named = entry.value if isinstance(entry.value, str) else None
        return _ABSENT_VALUES.get((entry.name, named or ""))
    row = _ABSENT.get(entry.name)
    if row is None or entry.value in row.same or _off(row, values):
        return None
    return None if entry.file and entry.name in _IGNORED_IN_FILES else row.choice


def _reason(
    entry: Entry, values: dict[str, Any], known: Container[str], command: str
) -> str | None:
    if entry.name in known:
        return None
    if command == "evaluate" and entry.name in _IGNORED_BY_EVALUATE:
        return _IGNORED_BY_EVALUATE[entry.name]
    if entry.file and entry.name in _IGNORED_IN_FILES:
        return _IGNORED_IN_FILES[entry.name]
    row = _ABSENT.get(entry.name)
    if row is None:
        return _IGNORED.get(entry.name)
    if row.switch and _off(row, values):
        return f"it has an effect with {row.switch[0]} only"
    return f"{entry.text or 'empty'} is what happens here anyway"


def _off(row: _Absent, values: dict[str, Any]) -> bool:
    return row.switch is not None and values.get(*row.switch) is False
