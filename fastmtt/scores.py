"""``python -m fastmtt.scores``: order a data set's training images from easy to hard.

Writes `{indices_path}/{dataset}_{GraNd|EL2N|Forgetting|Uncertainty}.pt`, the index file that
`sort_method` names, and beside it every network's scores as safetensors.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmtt.at_once import together
from fastmtt.augment import DSA
from fastmtt.command import command
from fastmtt.config import parse
from fastmtt.data import DataSet
from fastmtt.device import load_data
from fastmtt.difficulty import Forgetting, el2n, grand, logits, uncertainty
from fastmtt.errors import FastmttError
from fastmtt.experts.order import write_order
from fastmtt.experts.trainer import versions
from fastmtt.files import read_safetensors, write_safetensors
from fastmtt.interrupts import deferred
from fastmtt.ops import backends
from fastmtt.options import ScoresConfig
from fastmtt.progress import Meter, progress, say
from fastmtt.student import Student, initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, train

KIND = "fastmtt scores"
_NAMES = {
    "grand": "GraNd",
    "el2n": "EL2N",
    "forgetting": "Forgetting",
    "uncertainty": "Uncertainty",
}
# What networks must share for their scores to be averaged, besides their data.
_RECIPE = (
    *("score", "model", "dsa", "dsa_strategy", "batch_train", "lr_teacher", "mom", "l2", "epochs"),
    *("seed", "held_out", "uncertainty"),
)
_CHUNK = 512  # images between two signs of life
_SHOWN = 5  # rows at either end of the order
_Score = Callable[[Tensor, Tensor], Tensor]


def network_scores(config: ScoresConfig, dataset: DataSet, members: Sequence[int]) -> Tensor:
    """Train some of the networks side by side on all training images, and let them score these.

    A network depends on the seed and its number alone.

    Args:
        config: which score, and how networks are trained.
        dataset: the real data.
        members: the networks' numbers.

    Returns:
        Scores [S,n] on the CPU, float32, the larger the harder.

    Raises:
        FastmttError: a network diverged.
    """
    student, labels = _student(config, dataset), dataset.train_labels
    forgetting = Forgetting(len(members), len(labels))

    def look(epoch: int, weights: Tensor, velocity: Tensor | None) -> None:
        forgetting.look(logits(student, weights, dataset.train_images).argmax(-1) == labels)

    theta = _trained(
        config, dataset, student, members, look if config.score == "forgetting" else None
    )
    if not bool(theta.isfinite().all()):
        raise FastmttError(
            f"of the networks {_span(members)} one diverged: its weights are not finite; lower "
            "lr_teacher"
        )
    if config.score == "forgetting":
        return forgetting.scores.float()
    score: dict[str, _Score] = {
        "grand": lambda x, y: grand(student, theta, x, y),
        "el2n": lambda x, y: el2n(student, theta, x, y),
        "uncertainty": lambda x, _: uncertainty(student, theta, x, config.uncertainty),
    }
    chunks = torch.arange(len(labels), device=labels.device).split(_CHUNK)
    parts = [
        score[config.score](dataset.train_images[rows], labels[rows]).cpu()
        for rows in progress(chunks, desc=f"{_NAMES[config.score]} of networks {_span(members)}")
    ]
    return torch.cat(parts, dim=1)


def order_of(scores: Tensor, labels: Tensor, classes: int) -> list[Tensor]:
    """Each class's rows int64 from easy to hard by scores [n]; equal ones as in the data set."""
    everyone = scores.argsort(stable=True)
    return [everyone[labels[everyone] == label] for label in range(classes)]


def _trained(
    config: ScoresConfig,
    dataset: DataSet,
    student: Student,
    members: Sequence[int],
    after_epoch: Callable[[int, Tensor, Tensor | None], None] | None,
) -> Tensor:
    """The networks' weights [S,P] when they are asked for their scores."""
    examples, recipe = _examples(dataset), _recipe(config)
    make = partial(_network, config, dataset)
    theta = [initial_weights(make, config.seed, "scores init", member) for member in members]
    steps = -(-examples.count // recipe.batch_size) * recipe.epochs
    with Meter(steps, f"training networks {_span(members)}") as meter:
        return train(
            student,
            torch.stack(theta).to(examples.images.device),
            examples,
            recipe,
            seed=config.seed,
            what="scores",
            members=members,
            after_epoch=after_epoch,
            after_step=meter.step,
        )


def _recipe(config: ScoresConfig) -> Recipe:
    return Recipe(
        epochs=config.epochs,
        batch_size=config.batch_train,
        lr=config.lr_teacher,
        momentum=config.mom,
        weight_decay=config.l2,
        augment=DSA(config.dsa_strategy) if config.dsa else None,
        graph=not config.no_graph,
    )


def _examples(dataset: DataSet) -> Examples:
    return Examples(dataset.train_images, dataset.train_labels)


def _network(config: ScoresConfig, dataset: DataSet) -> nn.Module:
    return make_network(config.model, image_shape=dataset.image_shape, classes=len(dataset.classes))


def _student(config: ScoresConfig, dataset: DataSet) -> Student:
    return make_student(_network(config, dataset), dataset.image_shape, precision=config.precision)


def _all_scores(config: ScoresConfig, dataset: DataSet, file: Path) -> Tensor:
    """Every network's scores [networks,n]; the file holds those there are, group by group."""
    meta = _description(config, dataset)
    scores = _kept(file, meta, dataset.train_labels, resume=config.resume)
    missing, at_once = range(len(scores), config.networks), 1
    if len(scores):
        say(f"{file}: the scores of {len(scores)} networks are there; {len(missing)} to train")
    if missing:
        student = _student(config, dataset)
        at_once = together(student, _examples(dataset), _recipe(config), len(missing))
    for first in missing[::at_once]:
        more = network_scores(config, dataset, range(first, min(first + at_once, config.networks)))
        with deferred():
            scores = torch.cat([scores, more])
            tensors = {"scores": scores, "labels": dataset.train_labels}
            write_safetensors(file, KIND, tensors, {**meta, "versions": versions()})
    return scores


def _description(config: ScoresConfig, dataset: DataSet) -> dict[str, Any]:
    """What the scores come from; equal ones may be averaged."""
    made = {name: getattr(config, name) for name in _RECIPE}
    if config.score != "uncertainty":
        del made["uncertainty"]
    data = {"dataset": dataset.name, "source": dataset.source, "space": dataset.space.describe()}
    return {**data, **made}


def _kept(file: Path, meta: dict[str, Any], labels: Tensor, *, resume: bool) -> Tensor:
    """What an earlier call left [networks,n], where it is asked for and of the same making.

    Raises:
        FastmttError: it is of another making.
    """
    if not resume or not file.exists():
        return torch.empty(0, len(labels))
    tensors, there = read_safetensors(file, KIND)
    other = [
        f"{key} {there.get(key)} (now {meta[key]})" for key in meta if there.get(key) != meta[key]
    ]
    if not torch.equal(tensors["labels"], labels.cpu()):
        other.append("other labels")
    if other:
        raise FastmttError(
            f"{file} holds scores made with {', '.join(other)}; give the keys it was made with, or "
            "another indices_path"
        )
    return tensors["scores"]


def _files(config: ScoresConfig, dataset: DataSet) -> tuple[Path, Path]:
    """The order's file and the scores'; both new unless a call is resumed, in a folder to write to.

    Raises:
        FastmttError: one is there, or the folder cannot be written to.
    """
    folder = Path(config.indices_path).expanduser()
    name = f"{dataset.name.replace('/', '_')}_{_NAMES[config.score]}"
    order, scores = folder / f"{name}.pt", folder / f"{name}.safetensors"
    there = [file for file in (order, scores) if file.exists()]
    if there and not config.resume:
        raise FastmttError(
            f"{there[0]} is there already, and is not overwritten; go on with --resume, delete it, "
            "or give another indices_path"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise FastmttError(
            f"{folder} cannot be written to ({error.strerror}); choose another indices_path"
        ) from None
    return order, scores


def _table(config: ScoresConfig, dataset: DataSet, mean: Tensor, order: list[Tensor]) -> str:
    """Each class's mean score, its easiest and its hardest rows."""
    width = max(len("class"), *map(len, dataset.classes))
    lines = [
        f"{_NAMES[config.score]} of {len(mean)} training images of {dataset.name} "
        f"({dataset.source}), {config.networks} networks {config.model} after {config.epochs} "
        "epochs",
        f"{'class':<{width}}  {'images':>6}  {'mean':>9}  easiest rows ... hardest rows",
    ]
    for name, rows in zip(dataset.classes, order, strict=True):
        ends = [" ".join(map(str, end.tolist())) for end in (rows[:_SHOWN], rows[-_SHOWN:])]
        lines.append(
            f"{name:<{width}}  {len(rows):>6}  {float(mean[rows].mean()):>9.4g}  "
            f"{' ... '.join(ends)}"
        )
    return "\n".join(lines)


def _span(members: Sequence[int]) -> str:
    return f"{members[0]} to {members[-1]}"


@command
def main(argv: list[str] | None = None) -> None:
    """Train networks, score the training images with them, write the order and the scores."""
    config = parse("scores", argv)
    with backends.use(config.backend, config.precision):
        dataset = load_data(config)
        file, raw = _files(config, dataset)
        scores = _all_scores(config, dataset, raw)
    # More may be there than were asked for.
    config = dataclasses.replace(config, networks=len(scores))
    mean = scores.double().mean(0)
    order = order_of(mean, dataset.train_labels.cpu(), len(dataset.classes))
    write_order(file, order)
    print(_table(config, dataset, mean, order))
    say(f"{file}: take it as --sort_method {file.stem}; every network's scores are in {raw.name}")


if __name__ == "__main__":
    main()
