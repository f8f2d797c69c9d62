"""``python -m fastmtt.evaluate``: how well networks learn from a distilled set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt import __version__, evaluation
from fastmtt.augment import DSA
from fastmtt.command import command
from fastmtt.config import parse
from fastmtt.data import DataSet, load_space
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.evaluation import Protocol, Scores
from fastmtt.kept_scores import KeptScores, digest_of
from fastmtt.ops import backends
from fastmtt.options import BaseConfig, EvaluateConfig
from fastmtt.published_sets import load_published
from fastmtt.run import append_metrics
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


class Row:
    """One line of the table: what was trained on and how well it went."""

    def __init__(
        self,
        name: str,
        images: int,
        scores: Scores,
        lr: float,
        note: str = "",
        epochs: int | None = None,
    ) -> None:
        """Keep accuracies [networks] as per cent; ``epochs`` where the protocol's were trained."""
        self.name, self.images, self.lr, self.networks = name, images, lr, len(scores.test)
        self.epochs = epochs
        self.note = f"lr {lr:.4g}" + (f", {note}" if note else "")
        self.test = _per_cent(scores.test)
        self.held_out = None if scores.held_out is None else _per_cent(scores.held_out)

    def record(self) -> dict[str, Any]:
        """The line for ``metrics.jsonl``."""
        found = {
            "evaluated": self.name,
            "accuracy": self.test[0],
            "accuracy_std": self.test[1],
            "networks": self.networks,
            "lr": self.lr,
            "epoch_eval_train": self.epochs,
        }
        if self.held_out is not None:
            found |= {
                "held_out_accuracy": self.held_out[0],
                "held_out_accuracy_std": self.held_out[1],
            }
        return found


def table(rows: list[Row], heading: str) -> str:
    """Rows as aligned text; held-out accuracies stand there where there are any."""
    held_out = any(row.held_out for row in rows)
    column = f"{'held out':>16}  " if held_out else ""
    head = f"{'trained on':<30}{'images':>8}  {'accuracy':>16}  {column}{'networks':>8}"
    lines = [heading, head]
    for row in rows:
        column = f"{_in_words(row.held_out):>16}  " if held_out else ""
        accuracy = f"{_in_words(row.test):>16}"
        line = f"{row.name:<30}{row.images:>8}  {accuracy}  {column}{row.networks:>8}  {row.note}"
        lines.append(line.rstrip())
    return "\n".join(lines)


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
    """Train fresh networks on a distilled set, on request on real images too; print a table."""
    asked = parse("evaluate", argv)
    subject = find_subject(asked)
    config = asked.applied_to(subject.config)
    protocol = Protocol(
        config.model,
        asked.num_eval,
        asked.epoch_eval_train,
        config.batch_train,
        DSA(config.dsa_strategy) if config.dsa else None,
        config.seed,
        config.precision,
    )
    folder = subject.file.parent
    with backends.use(config.backend):
        dataset = load_data(config)
        synthetic = load_set(asked, subject, dataset)
        digest = _digest(config, protocol, dataset, synthetic, asked.compare)
        kept = KeptScores(folder, digest, resume=asked.resume)
        rows = _train_on_all(subject.name, dataset, synthetic, protocol, asked.compare, kept)
    _tell(subject, config, dataset, rows)
    how = {"model": config.model, "file": subject.file.name}
    append_metrics(folder, [{**row.record(), **how} for row in rows])
    kept.remove()


def _train_on_all(
    name: str,
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: Protocol,
    compare: bool,
    kept: KeptScores,
) -> list[Row]:
    count, lr = len(synthetic.images), float(synthetic.lr)
    scores = evaluation.evaluate_distilled(dataset, synthetic, protocol, kept=kept)
    rows = [Row(name, count, scores, lr, epochs=protocol.epochs)]
    if compare:
        ipc = max(1, count // len(dataset.classes))
        lrs = (evaluation.REAL_LR, lr)
        scores, better = evaluation.evaluate_random(dataset, ipc, lrs, protocol, kept)
        count = ipc * len(dataset.classes)
        note = "the better of two"
        rows.append(Row("random real images", count, scores, better, note, protocol.epochs))
        scores = evaluation.evaluate_real(dataset, protocol, REAL_STEPS, kept)
        count, lr = len(dataset.train_images), evaluation.REAL_LR
        rows.append(Row("all real training images", count, scores, lr, f"{REAL_STEPS} steps"))
    return rows


def _tell(subject: Subject, config: BaseConfig, dataset: DataSet, rows: list[Row]) -> None:
    count = len(dataset.test_images)
    print(
        table(rows, f"{config.model} on {count} test images of {dataset.name} ({dataset.source})")
    )
    if subject.published is not None:
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
    shape, labels, classes = tuple(synthetic.images.shape[1:]), synthetic.labels, dataset.classes
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
    config: BaseConfig, protocol: Protocol, dataset: DataSet, synthetic: Synthetic, compare: bool
) -> str:
    """Of everything the numbers come from; real images for training only where they are used."""
    settings = {
        "protocol": dataclasses.asdict(protocol) | {"augment": config.dsa and config.dsa_strategy},
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


def _per_cent(accuracies: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, the field's (of the population)."""
    return 100 * float(accuracies.mean()), 100 * float(accuracies.std(correction=0))


def _in_words(accuracy: tuple[float, float] | None) -> str:
    return "" if accuracy is None else f"{accuracy[0]:.2f} ± {accuracy[1]:.2f} %"


if __name__ == "__main__":
    main()
