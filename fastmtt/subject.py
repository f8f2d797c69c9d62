"""What an evaluation is of: a run's set, its stages' sets, or a published program's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fastmtt.config import parse
from fastmtt.data import DataSet, load_space
from fastmtt.errors import FastmttError
from fastmtt.options import BaseConfig, EvaluateConfig
from fastmtt.protocol import IDC_LR
from fastmtt.published_sets import load_published
from fastmtt.stages import stage_file
from fastmtt.synthetic import Synthetic, load_synthetic


@dataclass(frozen=True)
class Subject:
    """What is evaluated, before anything but names is known of it.

    Attributes:
        file: the distilled images.
        name: the set's name in the table.
        config: what the run was made with; of published files, the defaults.
        published: published accuracy in per cent, where known.
        ours: whether it is a run's set, not a published program's.
        stages: of a staged run, the set at the end of each stage; networks are trained on all.
    """

    file: Path
    name: str
    config: BaseConfig
    published: float | None
    ours: bool
    stages: tuple[Path, ...] = ()


def find_subject(asked: EvaluateConfig) -> Subject:
    """What the command line names: a run's set, or a published program's files.

    Raises:
        FastmttError: there is no finished run where one was named, or files are named beside it, or
            a file is not there.
    """
    if asked.data_dir is not None:
        for given in (asked.data_dir, asked.label_dir, asked.lr_dir):
            if given is not None and not Path(given).is_file():
                raise FastmttError(
                    f"{given} cannot be read (there is no such file); wanted what a published "
                    "program saved, images by --data_dir, labels by --label_dir, a rate by --lr_dir"
                )
        file = Path(asked.data_dir)
        return Subject(file, f"distilled set ({file.name})", BaseConfig(), None, ours=False)
    for key in ("label_dir", "lr_dir"):
        if getattr(asked, key) is not None:
            raise FastmttError(
                f"{key} goes with data_dir, and a run's set has its own; leave it out"
            )
    place = Path(str(asked.run))
    folder = place if place.is_dir() else place.parent
    wanted = f"distilled_{asked.which}.safetensors"
    file = folder / wanted if place.is_dir() else place
    is_set = file.is_file() and file.suffix == ".safetensors"
    if not is_set or not (folder / "config.yaml").is_file():
        there = sorted(path.name for path in folder.glob("distilled_*.safetensors"))
        raise FastmttError(
            f"{place} is no run: wanted a folder that fastmtt.distill wrote (config.yaml and "
            f"{wanted} in it; there is {', '.join(there) or 'no set'}) or one of its "
            "distilled_*.safetensors; a published program's images go by --data_dir"
        )
    made_with = parse("distill", ["--cfg", str(folder / "config.yaml")])
    name = f"distilled set ({file.stem.removeprefix('distilled_')})"
    if made_with.num_intervals > 1 and place.is_dir() and asked.which == "best":
        stages = _stages(folder, made_with.num_intervals)
        name = f"distilled set ({len(stages)} stages)"
        return Subject(stages[-1], name, made_with, made_with.published, ours=True, stages=stages)
    if asked.stage_init != "fresh":
        raise FastmttError(
            f"stage_init is {asked.stage_init}, but networks are trained on one set, not stage by "
            "stage; name the folder of a staged run, or leave stage_init out"
        )
    return Subject(file, name, made_with, made_with.published, ours=True)


def _stages(folder: Path, count: int) -> tuple[Path, ...]:
    """The sets of a staged run's stages.

    Raises:
        FastmttError: not all of them are done.
    """
    files = tuple(stage_file(folder, number) for number in range(count))
    done = sum(file.is_file() for file in files)
    if done < count:
        raise FastmttError(
            f"{folder} has done {done} of {count} stages; let it end (fastmtt.distill --resume), "
            "or name one of its distilled_*.safetensors"
        )
    return files


def load_set(asked: EvaluateConfig, subject: Subject, dataset: DataSet) -> Synthetic:
    """Read the set, at the learning rate asked for, where the data set is.

    Raises:
        FastmttError: it is damaged, or of another data set or space.
    """
    if subject.ours:
        _check_space(subject.file.parent, dataset)
        synthetic = _own_set(subject.file, asked)
    else:
        synthetic = load_published(
            subject.file,
            None if asked.label_dir is None else Path(asked.label_dir),
            None if asked.lr_dir is None else Path(asked.lr_dir),
            IDC_LR if asked.protocol == "idc" and asked.lr is None else asked.lr,
            dataset=dataset,
            factor=asked.factor,
        )
    _check_fits(subject.file, dataset, synthetic)
    return synthetic.to(dataset.test_labels.device)


def load_stages(asked: EvaluateConfig, subject: Subject, dataset: DataSet) -> list[Synthetic]:
    """Read the sets of a staged run's stages, as :func:`load_set` reads one."""
    sets = [_own_set(file, asked) for file in subject.stages]
    for file, one in zip(subject.stages, sets, strict=True):
        _check_fits(file, dataset, one)
    return [one.to(dataset.test_labels.device) for one in sets]


def _own_set(file: Path, asked: EvaluateConfig) -> Synthetic:
    synthetic, _ = load_synthetic(file)
    if asked.lr is not None:
        synthetic.lr = torch.tensor(asked.lr)
    return synthetic


def _check_space(folder: Path, dataset: DataSet) -> None:
    saved, here = load_space(folder / "space.safetensors").describe(), dataset.space.describe()
    if saved != here:
        raise FastmttError(
            f"{folder} was distilled in the space {saved}, the data loaded are in {here}; give "
            "the dataset, data_path and zca it was made with"
        )


def _check_fits(file: Path, dataset: DataSet, synthetic: Synthetic) -> None:
    shape = synthetic.parametrisation.image_shape(tuple(synthetic.images.shape[1:]))
    labels, classes = synthetic.labels, dataset.classes
    soft = labels.is_floating_point()
    fits = labels.shape[1] == len(classes) if soft else int(labels.max()) < len(classes)
    if shape != dataset.image_shape or not fits:
        kind = f"logits of {labels.shape[1]} classes" if soft else f"labels up to {labels.max()}"
        raise FastmttError(
            f"{file} holds images {list(shape)} with {kind}, {dataset.name} has "
            f"{list(dataset.image_shape)} and {len(classes)} classes; give the data set it was "
            "distilled from"
        )
