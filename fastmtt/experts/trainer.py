"""Training the experts a store is missing, and writing each as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastmtt
from fastmtt import budget
from fastmtt.at_once import together
from fastmtt.data import DataSet
from fastmtt.experts import unfinished
from fastmtt.experts.pruning import Pruned, random_masks
from fastmtt.experts.store import TrajectoryStore
from fastmtt.experts.unfinished import Unfinished
from fastmtt.interrupts import deferred
from fastmtt.pace import Pace
from fastmtt.progress import Meter
from fastmtt.student import ConvNetStudent, Student, initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Network, Recipe, accuracy, train


def identity(dataset: DataSet, network: str) -> dict[str, Any]:
    """What experts must share to be used together: network, data set, space."""
    module = make_network(network, image_shape=dataset.image_shape, classes=len(dataset.classes))
    parameters = dict(module.named_parameters())
    return {
        "names": list(parameters),
        "shapes": [list(p.shape) for p in parameters.values()],
        "network": network,
        "dataset": dataset.name,
        "space": dataset.space.describe(),
    }


def description(recipe: Recipe, strategy: str, seed: int, held_out: int) -> dict[str, Any]:
    """The recipe as it is stored beside a trajectory; equal ones make equal experts.

    What a recipe does without is not named, so that experts made before there was any still fit.
    """
    made: dict[str, Any] = {
        "batch_train": recipe.batch_size,
        "lr_teacher": recipe.lr,
        "mom": recipe.momentum,
        "l2": recipe.weight_decay,
        "decay_after": recipe.decay_after,
        "dsa_strategy": strategy if recipe.augment is not None else "none",
        "seed": seed,
    }
    if held_out:
        made["held_out"] = held_out
    if recipe.precision not in (None, "fp32"):
        made["precision"] = recipe.precision
    if recipe.sharpness is not None:
        made |= asdict(recipe.sharpness)
    if recipe.sparse_ratio:
        made["sparse_ratio"] = recipe.sparse_ratio
    return made if recipe.schedule is None else made | recipe.schedule.describe()


def versions() -> dict[str, str]:
    """Versions of what made a file."""
    return {
        "fastmtt": fastmtt.__version__,
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": np.__version__,
    }


def train_experts(
    store: TrajectoryStore,
    dataset: DataSet,
    network: str,
    recipe: Recipe,
    meta: Mapping[str, Any],
    *,
    experts: Sequence[int],
    at_once: int | None,
    seed: int,
) -> dict[int, float]:
    """Train experts by number and write each trajectory to the store.

    Snapshot 0 is the initialisation, snapshot e the weights after epoch e (MTT's convention). An
    expert depends on the seed and its number alone. What an earlier call left unfinished is gone
    on with; an interrupted one leaves what it has.

    Args:
        store: where they go.
        dataset: the real data.
        network: factory name.
        recipe: how to train.
        meta: what to store beside them.
        experts: their numbers.
        at_once: how many train side by side; None for what is fastest.
        seed: the run's seed.

    Returns:
        Test accuracy by expert.
    """

    def make() -> nn.Module:
        return make_network(network, image_shape=dataset.image_shape, classes=len(dataset.classes))

    student = make_student(make(), dataset.image_shape, precision=recipe.precision)
    examples = Examples(dataset.train_images, dataset.train_labels)
    begun = {e: _begin(store, e, make, seed, student, recipe) for e in experts}
    if experts:
        at_once = at_once or _chosen(student, examples, recipe, len(experts))
    groups = list(_groups(experts, begun, at_once or 1))
    steps = [recipe.steps(epoch, examples.count) for epoch in range(recipe.epochs)]
    left = sum(sum(steps[begun[group[0]].epochs :]) for group in groups)
    found: dict[int, float] = {}
    with Meter(left, "experts") as meter:
        for group in groups:
            states = _train_group(
                *(store, student, examples, recipe, meta, group),
                [begun.pop(expert) for expert in group],
                seed,
                meter.step,
            )
            last = torch.stack([state.snapshots[-1] for state in states])
            scores = accuracy(
                student,
                last.to(examples.images.device),
                dataset.test_images,
                dataset.test_labels,
            )
            with deferred():
                for expert, state, score in zip(group, states, scores.tolist(), strict=True):
                    found[expert] = score
                    store.write(
                        expert, torch.stack(state.snapshots), {**meta, "test_accuracy": score}
                    )
                    unfinished.discard(store, expert)
            meter.note = f"test accuracy {100 * float(scores.mean()):.1f} %"
    return found


def _chosen(student: Student, examples: Examples, recipe: Recipe, most: int) -> int:
    """How many train side by side where nobody says; on a GPU with the memory that is to take."""
    count = together(student, examples, recipe, most)
    if isinstance(student, ConvNetStudent) and examples.images.device.type != "cpu":
        sizes = (count, examples.count, recipe.batch_size, examples.image_shape)
        needed = budget.training(student, *sizes, sharpness=recipe.sharpness is not None)
        budget.announce({"training": needed}, examples.images.device)
        student.room.clear()
    return count


def _begin(
    store: TrajectoryStore,
    expert: int,
    make: Callable[[], nn.Module],
    seed: int,
    student: Student,
    recipe: Recipe,
) -> Unfinished:
    """An expert as an earlier call left it, not beyond its end, or at its initialisation."""
    left = unfinished.load(store, expert, student.size)
    if left is not None:
        return Unfinished(left.snapshots[: recipe.epochs + 1], left.velocity)
    weights = initial_weights(make, seed, "expert init", expert)
    if recipe.sparse_ratio:
        weights = weights * random_masks(student, recipe.sparse_ratio, seed, [expert])[0]
    return Unfinished([weights], None)


def _groups(
    experts: Sequence[int], begun: Mapping[int, Unfinished], at_once: int
) -> Iterator[list[int]]:
    """Experts that are equally far, at most ``at_once`` of them."""
    for _, alike in groupby(experts, lambda expert: begun[expert].epochs):
        together = list(alike)
        yield from (together[i : i + at_once] for i in range(0, len(together), at_once))


def _train_group(
    store: TrajectoryStore,
    student: Student,
    examples: Examples,
    recipe: Recipe,
    meta: Mapping[str, Any],
    group: list[int],
    begun: list[Unfinished],
    seed: int,
    after_step: Callable[[], None],
) -> list[Unfinished]:
    """Train experts side by side to their end; interrupted, save where they stand."""
    states, saved = begun, begun
    pace = Pace()

    def save() -> None:
        nonlocal saved
        if states is not saved:
            with pace.saving():
                for expert, state in zip(group, states, strict=True):
                    unfinished.save(store, expert, state, meta)
            saved = states

    def keep(epoch: int, weights: Tensor, velocity: Tensor | None) -> None:
        nonlocal states
        momenta = [None] * len(group) if velocity is None else list(velocity.cpu())
        states = [
            Unfinished([*state.snapshots, row], momentum)
            for state, row, momentum in zip(states, weights.cpu(), momenta, strict=True)
        ]
        if pace.due and epoch < recipe.epochs:
            save()

    device = examples.images.device
    momenta = [state.velocity for state in begun if state.velocity is not None]
    network: Network = student
    if recipe.sparse_ratio:
        masks = random_masks(student, recipe.sparse_ratio, seed, group)
        network = Pruned(student, masks.to(device))
    try:
        train(
            network,
            torch.stack([state.snapshots[-1] for state in begun]).to(device),
            examples,
            recipe,
            seed=seed,
            what="expert",
            members=group,
            epochs_done=begun[0].epochs,
            velocity=torch.stack(momenta).to(device) if momenta else None,
            after_epoch=keep,
            after_step=after_step,
        )
    except KeyboardInterrupt:
        with deferred():
            save()
        raise
    return states
