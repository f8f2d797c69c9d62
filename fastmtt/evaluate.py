"""``python -m fastmtt.evaluate``: how well networks learn from a distilled set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt import __version__, evaluation
from fastmtt.accuracy_table import Row, by_network, by_set
from fastmtt.augment import DSA
from fastmtt.command import command
from fastmtt.config import parse
from fastmtt.data import DataSet, load_space
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.evaluation import Protocol
from fastmtt.experts.published import open_experts
from fastmtt.experts.store import store_path
from fastmtt.kept_scores import KeptScores, digest_of
from fastmtt.ops import backends
from fastmtt.options import BaseConfig, DistillConfig, EvaluateConfig
from fastmtt.pictures import save_bars
from fastmtt.pools import pool
from fastmtt.published_sets import load_published
from fastmtt.run import append_metrics
from fastmtt.staged_evaluation import evaluate_stages
from fastmtt.stages import first_snapshots, stage_file
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import Synthetic, load_synthetic

REAL_STEPS = 1000  # of a network trained on all real images: enough to level off


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
        FastmttError: there is no finished run where one was named, or files are named beside it.
    """
    if asked.data_dir is not None:
        file = Path(asked.data_dir)
        return Subject(file, f"distilled set ({file.name})", BaseConfig(), None, ours=False)
    for key in ("label_dir", "lr_dir"):
        if getattr(asked, key) is not None:
            raise FastmttError(
                f"{key} goes with data_dir, and a run's set has its own; leave it out"
            )
    given = Path(str(asked.run))
    folder = given if given.is_dir() else given.parent
    wanted = f"distilled_{asked.which}.safetensors"
    file = folder / wanted if given.is_dir() else given
    is_set = file.is_file() and file.suffix == ".safetensors"
    if not is_set or not (folder / "config.yaml").is_file():
        there = sorted(path.name for path in folder.glob("distilled_*.safetensors"))
        raise FastmttError(
            f"{given} is no run: wanted a folder that fastmtt.distill wrote (config.yaml and "
            f"{wanted} in it; there is {', '.join(there) or 'no set'}) or one of its "
            "distilled_*.safetensors; a published program's images go by --data_dir"
        )
    made_with = parse("distill", ["--cfg", str(folder / "config.yaml")])
    name = f"distilled set ({file.stem.removeprefix('distilled_')})"
    if made_with.num_intervals > 1 and given.is_dir() and asked.which == "best":
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
            asked.lr,
            dataset=dataset,
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


@command
def main(argv: list[str] | None = None) -> None:
    """Train fresh networks, of one kind or several, on a distilled set; print a table."""
    asked = parse("evaluate", argv)
    subject = find_subject(asked)
    config = asked.applied_to(subject.config)
    networks = pool(asked.eval_mode, config.model, asked.model_eval)
    protocol = Protocol(
        config.model,
        asked.num_eval,
        asked.epoch_eval_train,
        config.batch_train,
        DSA(config.dsa_strategy) if config.dsa else None,
        config.seed,
        config.precision,
        graph=not config.no_graph,
    )
    folder = subject.file.parent
    with backends.use(config.backend, config.precision):
        dataset = load_data(config)
        synthetic = load_set(asked, subject, dataset)
        stages = load_stages(asked, subject, dataset)
        start = None
        if asked.stage_init == "released":
            start = _released_start(subject, protocol, networks)
        score = partial(_score, dataset, synthetic, stages, start)
        for name in networks:  # whether there are all of them, before the first is trained
            make_network(name, image_shape=dataset.image_shape, classes=len(dataset.classes))
        sets = [synthetic, *stages[:-1]]
        digest = _digest(config, protocol, networks, dataset, sets, start, asked.compare)
        kept = KeptScores(folder, digest, resume=asked.resume)
        if asked.eval_mode is None:
            rows = _train_on_all(
                subject.name, dataset, synthetic, protocol, asked.compare, kept, score
            )
        else:
            rows = _train_each(subject.name, networks, synthetic, protocol, kept, score)
    data = f"{len(dataset.test_images)} test images of {dataset.name} ({dataset.source})"
    if asked.eval_mode is None:
        print(by_set(rows, f"{config.model} on {data}"))
    else:
        _tell_each(subject, rows, data, asked)
    _tell(subject, asked)
    append_metrics(folder, [{**row.record(), "file": subject.file.name} for row in rows])
    kept.remove()


Score = Callable[[Protocol, str, KeptScores], evaluation.Scores]


def _score(
    dataset: DataSet,
    synthetic: Synthetic,
    stages: list[Synthetic],
    start: Tensor | None,
    protocol: Protocol,
    desc: str,
    kept: KeptScores,
) -> evaluation.Scores:
    """Accuracy of networks trained on the set, or on a staged run's sets one after another."""
    if not stages:
        return evaluation.evaluate_distilled(dataset, synthetic, protocol, desc, kept)
    return evaluate_stages(dataset, stages, protocol, desc=desc, kept=kept, start=start)


def _released_start(subject: Subject, protocol: Protocol, networks: list[str]) -> Tensor:
    """Every network's initial weights in PDD's program: those of the first expert's start.

    Raises:
        FastmttError: the experts are gone, or of another network.
    """
    config = subject.config
    assert isinstance(config, DistillConfig)
    if {protocol.model, *networks} != {config.model}:
        raise FastmttError(
            f"stage_init released begins with weights of {config.model}, but the networks are "
            f"{', '.join(networks)}; set stage_init to fresh"
        )
    with_name = load_synthetic(subject.file)[1]
    root = store_path(
        config.buffer_path, with_name["dataset"], config.model, config.zca, config.sparse_ratio
    )
    store = open_experts(root, {"shapes": with_name["shapes"]})
    if not (experts := store.indices()):
        raise FastmttError(
            f"{root} holds no experts, and stage_init released begins with the first one's initial "
            "weights; set stage_init to fresh"
        )
    return first_snapshots(store, experts[:1], protocol.networks)


def _train_on_all(
    name: str,
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: Protocol,
    compare: bool,
    kept: KeptScores,
    score: Score,
) -> list[Row]:
    """One network on the set and, to compare, on real images."""
    model, count, lr = protocol.model, len(synthetic.images), float(synthetic.lr)
    scores = score(protocol, "distilled set", kept)
    rows = [Row(name, model, count, scores, lr, epochs=protocol.epochs)]
    if compare:
        ipc = max(1, count // len(dataset.classes))
        lrs = (evaluation.REAL_LR, lr)
        scores, better = evaluation.evaluate_random(dataset, ipc, lrs, protocol, kept)
        count = ipc * len(dataset.classes)
        note = "the better of two"
        rows.append(Row("random real images", model, count, scores, better, note, protocol.epochs))
        scores = evaluation.evaluate_real(dataset, protocol, REAL_STEPS, kept)
        count, lr = len(dataset.train_images), evaluation.REAL_LR
        note = f"{REAL_STEPS} steps"
        rows.append(Row("all real training images", model, count, scores, lr, note))
    return rows


def _train_each(
    name: str,
    networks: list[str],
    synthetic: Synthetic,
    protocol: Protocol,
    kept: KeptScores,
    score: Score,
) -> list[Row]:
    """Several networks on the set, all by the settings it was distilled for."""
    rows = []
    for model in networks:
        own = dataclasses.replace(protocol, model=model)
        desc = f"{model} on the distilled set"
        scores = score(own, desc, kept)
        lr = float(synthetic.lr)
        rows.append(Row(name, model, len(synthetic.images), scores, lr, epochs=protocol.epochs))
    return rows


def _tell_each(subject: Subject, rows: list[Row], data: str, asked: EvaluateConfig) -> None:
    first = rows[0]
    heading = (
        f"{first.name}, {first.images} images, {first.note}, {first.networks} of each network, "
        f"on {data}"
    )
    print(by_network(rows, heading))
    picture = subject.file.with_name(f"{subject.file.stem}_eval_{asked.eval_mode}.png")
    save_bars(picture, {row.model: row.test for row in rows}, "test accuracy (%)")
    print(f"as a picture: {picture}")


def _tell(subject: Subject, asked: EvaluateConfig) -> None:
    if subject.published is not None and asked.eval_mode is None:
        print(f"published for this setting: {subject.published} %")
    name = subject.file.stem.removeprefix("distilled_")
    line = "ema_" if name.startswith("ema_") else ""
    picture = subject.file.with_name(f"{line}images_{name.removeprefix(line)}.png")
    if subject.ours and picture.is_file():
        print(f"what was distilled: {picture}")


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


def _digest(
    config: BaseConfig,
    protocol: Protocol,
    networks: list[str],
    dataset: DataSet,
    sets: list[Synthetic],
    start: Tensor | None,
    compare: bool,
) -> str:
    """Of everything the numbers come from; real images for training only where they are used."""
    settings = {
        "protocol": dataclasses.asdict(protocol) | {"augment": config.dsa and config.dsa_strategy},
        "networks": networks,
        "classes": len(dataset.classes),
        "compare": REAL_STEPS if compare else None,
        "backend": config.backend,
        "device": str(dataset.test_labels.device),
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__],
    }
    tensors: list[Any] = [tensor for one in sets for tensor in one.tensors().values()]
    tensors += [] if start is None else [start]
    tensors += [dataset.test_images, dataset.test_labels]
    tensors += [dataset.held_out_images, dataset.held_out_labels]
    if compare:
        tensors += [dataset.train_images, dataset.train_labels]
    return digest_of(settings, tensors)


if __name__ == "__main__":
    main()
