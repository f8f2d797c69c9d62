"""``python -m fastmtt.evaluate``: how well networks learn from a distilled set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmtt import __version__, evaluation
from fastmtt.accuracy_table import Row, by_network, by_set
from fastmtt.augment import DSA
from fastmtt.command import command
from fastmtt.config import parse
from fastmtt.data import DataSet, load_space
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.evaluation import Protocol
from fastmtt.kept_scores import KeptScores, digest_of
from fastmtt.ops import backends
from fastmtt.options import BaseConfig, EvaluateConfig
from fastmtt.pictures import save_bars
from fastmtt.pools import pool
from fastmtt.published_sets import load_published
from fastmtt.run import append_metrics
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
    """

    file: Path
    name: str
    config: BaseConfig
    published: float | None
    ours: bool


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
    return Subject(file, name, made_with, made_with.published, ours=True)


def load_set(asked: EvaluateConfig, subject: Subject, dataset: DataSet) -> Synthetic:
    """Read the set, at the learning rate asked for, where the data set is.

    Raises:
        FastmttError: it is damaged, or of another data set or space.
    """
    if subject.ours:
        _check_space(subject.file.parent, dataset)
        synthetic, _ = load_synthetic(subject.file)
        if asked.lr is not None:
            synthetic.lr = torch.tensor(asked.lr)
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
    with backends.use(config.backend):
        dataset = load_data(config)
        synthetic = load_set(asked, subject, dataset)
        for name in networks:  # whether there are all of them, before the first is trained
            make_network(name, image_shape=dataset.image_shape, classes=len(dataset.classes))
        digest = _digest(config, protocol, networks, dataset, synthetic, asked.compare)
        kept = KeptScores(folder, digest, resume=asked.resume)
        if asked.eval_mode is None:
            rows = _train_on_all(subject.name, dataset, synthetic, protocol, asked.compare, kept)
        else:
            rows = _train_each(subject.name, networks, dataset, synthetic, protocol, kept)
    data = f"{len(dataset.test_images)} test images of {dataset.name} ({dataset.source})"
    if asked.eval_mode is None:
        print(by_set(rows, f"{config.model} on {data}"))
    else:
        _tell_each(subject, rows, data, asked)
    _tell(subject, asked)
    append_metrics(folder, [{**row.record(), "file": subject.file.name} for row in rows])
    kept.remove()


def _train_on_all(
    name: str,
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: Protocol,
    compare: bool,
    kept: KeptScores,
) -> list[Row]:
    """One network on the set and, to compare, on real images."""
    model, count, lr = protocol.model, len(synthetic.images), float(synthetic.lr)
    scores = evaluation.evaluate_distilled(dataset, synthetic, protocol, kept=kept)
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
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: Protocol,
    kept: KeptScores,
) -> list[Row]:
    """Several networks on the set, all by the settings it was distilled for."""
    rows = []
    for model in networks:
        own = dataclasses.replace(protocol, model=model)
        desc = f"{model} on the distilled set"
        scores = evaluation.evaluate_distilled(dataset, synthetic, own, desc, kept)
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
    synthetic: Synthetic,
    compare: bool,
) -> str:
    """Of everything the numbers come from; real images for training only where they are used."""
    settings = {
        "protocol": dataclasses.asdict(protocol) | {"augment": config.dsa and config.dsa_strategy},
        "networks": networks,
        "classes": len(dataset.classes),
        "compare": REAL_STEPS if compare else None,
        "backend": config.backend,
        "device": str(synthetic.images.device),
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__],
    }
    tensors: list[Any] = [synthetic.images, synthetic.labels, synthetic.lr]
    tensors += [dataset.test_images, dataset.test_labels]
    tensors += [dataset.held_out_images, dataset.held_out_labels]
    if compare:
        tensors += [dataset.train_images, dataset.train_labels]
    return digest_of(settings, tensors)


if __name__ == "__main__":
    main()
