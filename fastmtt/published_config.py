"""Keys of the published programs that are none of ours: what each was, what becomes of it.

MTT, FTD, TESLA, DATM, PAD, PDD and IDC share most keys, and those are ours too. Of the rest some
never did anything, some name what happens here anyway, some are another spelling of ours, and some
name a choice this version does not have. A row is lifted by removing it; a key that a command has
goes to the command. A file of a published program is one without `method`.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from fastmtt.config_file import Entry
from fastmtt.errors import FastmttError

# Keys without effect: the reason.
_IGNORED = {
    "lr_init": "no published program reads it",
    "init_frozen": "PAD does not read it",
    "name": "PAD does not read it; run_name names a run",
    "parall_eva": "evaluation uses the device the run uses",
    "record_loss": "every loss is recorded in metrics.jsonl",
    "force_save": "images are saved at every evaluation, however many there are",
    "load_all": "trajectories are read in place, without loading their files",
    "use-random-pruning": "experts are pruned where sparse_ratio is above 0",
    "save_interval": "every expert has a file of its own",
    "Initialize_Label_Model_Dir": "no published program reads it; buffer_path is searched",
    **dict.fromkeys(
        ("add_hard", "rm_easy", "max_ratio", "bins_path"), "PAD's buffer programs do not read it"
    ),
    "reproduce": "configs/idc has the values it stands for, a file for each setting",
    "epochs": "IDC's program overwrites it; epoch_eval_train is the evaluation's",
    "mixup": "it is the evaluation's, which has a protocol; mixup_net is the matching's",
    "rrc": "it is the evaluation's, which has a protocol",
}
_NO_LOADER = "it fed a loader from which no published program draws"
_IGNORED_BY = {
    "buffer": {"batch_real": _NO_LOADER},
    "scores": {"batch_real": _NO_LOADER},
    "evaluate": {
        "batch_real": _NO_LOADER,
        "lr_teacher": "the published evaluation does not read it; lr sets the learning rate",
        "no_aug": "evaluation augments by dsa alone",
    },
}
# Keys by other names: those of DATM's first files, PDD's, IDC's.
_RENAMED = {
    "niter": "Iteration",
    "init": "pix_init",
    "net_type": "model",
    "lr": "net_lr",
    "wd": "net_wd",
    "batch_size": "net_batch",
    "size": "res",
    "repeat": "num_eval",
    "num-intervals": "num_intervals",
    "Initial_Step": "current_max_start_epoch",
    "learn_end_epoch": "expansion_end_epoch",
    "sparse-ratio": "sparse_ratio",
    "override_epoch_eval_train": "epoch_eval_train",
}
SHORT = {"-d": "dataset", "-f": "factor", "-n": "net_type", "-i": "ipc"}  # IDC's flags
# IDC's names of what has another name here, by the key they are found under.
_NAMES = {
    "dataset": {
        "cifar10": "CIFAR10",
        "cifar100": "CIFAR100",
        "svhn": "SVHN",
        "mnist": "MNIST",
        "fashion": "FashionMNIST",
    },
    "init": {"random": "real", "mix": "real", "noise": "noise"},
    "net_type": {"convnet": "ConvNet"},
}
_EMPTY_IS_NULL = ("Initialize_Label_Model", "sort_method")
_GROWING = ("current_max_start_epoch", "expansion_end_epoch")


@dataclass(frozen=True)
class _Absent:
    """A choice that this version does not have.

    Attributes:
        choice: What it is and whose.
        same: Values that ask for what happens here anyway.
    """

    choice: str
    same: tuple[Any, ...]


_ABSENT = {
    "eval_mode": _Absent("evaluation on several networks, which evaluate has", ("S",)),
    "max_files": _Absent("a number of files of ten experts, for which max_experts stands", (None,)),
    "loss_type": _Absent("TESLA's other losses of experts", ("ce",)),
    "random_trajectory": _Absent("TESLA's random trajectories", (False,)),
    "start_interval": _Absent("PDD's later first stage, for which resume stands", (1,)),
    "start_sampling_epoch": _Absent("PDD's first epoch, for which min_start_epoch stands", (0,)),
    "start-interval": _Absent("PDD's later first stage, for which resume stands", (0,)),
    "match": _Absent("IDC's matching of features", ("grad",)),
    "fix_iter": _Absent("IDC's networks of several outer iterations", (-1, 1)),
    "norm_type": _Absent("IDC's norms by a key, which model names (ConvNetBN)", ("instance",)),
    "depth": _Absent("IDC's depth by a key, which model names (ConvNetD4)", (3, 10)),
    "width": _Absent("IDC's width by a key, which model names (ConvNetW256)", (1,)),
    "momentum": _Absent("another momentum of IDC's networks", (0.9,)),
    "nclass": _Absent("a number of ImageNet's classes, for which subset stands", ()),
    "phase": _Absent("IDC's parts of a data set", (-1,)),
    "nclass_sub": _Absent("IDC's parts of a data set", (-1,)),
}


def method_of(names: Container[str]) -> tuple[str, str]:
    """Tell the method of a published file by its keys, and the sign it is told by."""
    if "loss_ratio" in names:
        return "pad", "it has loss_ratio"
    if "Momentum_y" in names:
        return "datm", "it has Momentum_y but no loss_ratio"
    return "mtt", "it has neither loss_ratio nor Momentum_y"


def is_all_of_imagenet(given: Mapping[str, Any]) -> bool:
    """Tell whether TESLA's data set ImageNet is meant, all 1000 classes at 64x64; it is said.

    TESLA's program knows no subsets, the others know nothing else.
    """
    tesla = given.get("method") == "tesla" and given.get("dataset") == "ImageNet"
    if not tesla or "subset" in given:
        return False
    warnings.warn(
        "dataset ImageNet is taken as ImageNet1K, which TESLA's program means by it; name a subset "
        "to distil one",
        stacklevel=3,
    )
    return True


def settle(entries: Sequence[Entry], known: Container[str], command: str) -> list[Entry]:
    """Take the published programs' own keys out, with a warning that names each and its reason.

    Args:
        entries: A file's entries, or the flags'; every name once.
        known: The command's own keys.
        command: buffer, distill or evaluate.

    Returns:
        The command's own keys, as the command spells them, and those that no table knows.

    Raises:
        FastmttError: Keys name choices that this version does not have; all in one sentence.
    """
    written = entries
    entries = [entry.with_value(None) if _is_none(entry) else entry for entry in written]
    values = {entry.name: entry.value for entry in entries}
    kept, said = [], []
    lacking: dict[str, list[str]] = {}
    for entry, as_written in zip(entries, written, strict=True):
        absent = _absent_choice(entry, known)
        if absent:
            lacking.setdefault(absent, []).append(f"{entry.name}: {entry.text}")
        elif reason := _reason(entry, values, known, command):
            said.append(f"{entry.place}{entry.name} is ignored: {reason}")
        else:
            ours, note = _as_ours(entry, values, known)
            if _is_none(as_written):
                note = "is the text None, taken as null"
            kept.append(ours)
            if note:
                said.append(f"{entry.place}{entry.name} {note}")
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


def _is_none(entry: Entry) -> bool:
    """Python's None is text to YAML, and null to DATM's and PAD's programs, which read by yacs."""
    return entry.value == "None"


def _absent_choice(entry: Entry, known: Container[str]) -> str | None:
    row = _ABSENT.get(entry.name)
    if entry.name in known or row is None or entry.value in row.same:
        return None
    return row.choice


def _reason(
    entry: Entry, values: dict[str, Any], known: Container[str], command: str
) -> str | None:
    """Say why an entry has no effect; None: it has one."""
    if entry.name == "ema_decay" and entry.file and _learns_labels(values):
        return "DATM's and PAD's programs do not read it; with method in the file it counts"
    if entry.name in known:
        return None
    if entry.name in _IGNORED_BY.get(command, {}):
        return _IGNORED_BY[command][entry.name]
    if entry.name == "teacher_label" and entry.value is False:
        return "false is what happens here anyway"
    row = _ABSENT.get(entry.name)
    if row is None:
        return _IGNORED.get(entry.name)
    return f"{entry.text or 'empty'} is what happens here anyway"


def _as_ours(entry: Entry, values: dict[str, Any], known: Container[str]) -> tuple[Entry, str]:
    """Give an entry as our commands spell it, and what to say of it; empty: nothing."""
    name, value = entry.name, entry.value
    if name == "device" and isinstance(value, list):
        return entry.with_value("auto"), (
            f"is a list of GPUs ({entry.text}), taken as auto: one device is used"
        )
    if name == "niter" and isinstance(value, int) and not isinstance(value, bool):
        loops = values.get("inner_loop", 100)
        outer = value * 100 // loops if isinstance(loops, int) and loops > 0 else value
        ours = entry.renamed("Iteration").with_value(max(outer - 1, 0))
        return ours, f"is taken as Iteration {ours.text}, which counts from 0"
    theirs = _NAMES.get(name, {})
    if isinstance(value, str) and value in theirs:
        ours = entry.renamed(_RENAMED.get(name, name)).with_value(theirs[value])
        return ours, f"{value} is taken as {ours.name} {ours.text}, its name here"
    if name in _RENAMED and _RENAMED[name] in known:
        ours = entry.renamed(_RENAMED[name])
        return ours, f"is taken as {ours.name}, its name here{_growing_note(values)}"
    if name == "teacher_label" and value is True and "labels" in known:
        return entry.renamed("labels").with_value("teacher"), "is taken as labels: teacher"
    if name in _EMPTY_IS_NULL and not entry.text and (value == "" or not entry.file):
        return entry.with_value(None), "is empty, taken as null"
    if "method" in values and entry.file:
        return entry, ""
    if name == "rho_min" and value is not None:
        return entry, "has no effect of its own: the radius is rho_max all the time, wanted equal"
    if name == "depth_ratio" and "loss_ratio" in values and "keep" not in values:
        return entry, "has an effect with keep: depth only; PAD's program reads loss_ratio"
    if name in _GROWING and _growing_note(values):
        return entry, _growing_note(values).removeprefix(", which ")
    return entry, ""


def _growing_note(values: dict[str, Any]) -> str:
    off = values.get("Sequential_Generation") is False
    return ", which has an effect with Sequential_Generation only" if off else ""


def _learns_labels(values: Container[str]) -> bool:
    return "method" not in values and method_of(values)[0] != "mtt"
