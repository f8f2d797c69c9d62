"""Training the experts a store is missing, and writing each as soon as it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import fastmtt
from fastmtt.data import DataSet
from fastmtt.experts.store import TrajectoryStore
from fastmtt.progress import Meter
from fastmtt.student import initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, accuracy, train


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


def description(recipe: Recipe, strategy: str, seed: int) -> dict[str, Any]:
    """The recipe as it is stored beside a trajectory; equal ones make equal experts."""
    return {
        "batch_train": recipe.batch_size,
        "lr_teacher": recipe.lr,
        "mom": recipe.momentum,
        "l2": recipe.weight_decay,
        "decay_after": recipe.decay_after,
        "dsa_strategy": strategy if recipe.augment is not None else "none",
        "seed": seed,
    }


def versions() -> dict[str, str]:
    """Versions of what made a file."""
    return {
        "fastmtt": fastmtt.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
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
    at_once: int,
    seed: int,
) -> dict[int, float]:
    """Train experts by number and write each trajectory to the store.

    Snapshot 0 is the initialisation, snapshot e the weights after epoch e (MTT's convention). An
    expert depends on the seed and its number alone.

    Args:
        store: where they go.
        dataset: the real data.
        network: factory name.
        recipe: how to train.
        meta: what to store beside them.
        experts: their numbers.
        at_once: how many train side by side.
        seed: the run's seed.

    Returns:
        Test accuracy by expert.
    """

    def make() -> nn.Module:
        return make_network(network, image_shape=dataset.image_shape, classes=len(dataset.classes))

    student = make_student(make(), dataset.image_shape)
    examples = Examples(dataset.train_images, dataset.train_labels)
    steps = -(-examples.count // recipe.batch_size) * recipe.epochs
    groups = [experts[i : i + at_once] for i in range(0, len(experts), at_once)]
    found: dict[int, float] = {}
    with Meter(len(groups) * steps, "experts") as meter:
        for group in groups:
            theta = torch.stack([initial_weights(make, seed, "expert init", e) for e in group])
            rows = [theta]

            def keep(epoch: int, weights: Tensor, rows: list[Tensor] = rows) -> None:
                rows.append(weights.cpu().clone())

            theta = train(
                student,
                theta.to(examples.images.device),
                examples,
                recipe,
                seed=seed,
                what="expert",
                members=group,
                after_epoch=keep,
                after_step=meter.step,
            )
            scores = accuracy(student, theta, dataset.test_images, dataset.test_labels)
            trajectories = torch.stack(rows, dim=1)
            for expert, trajectory, score in zip(group, trajectories, scores, strict=True):
                found[expert] = float(score)
                store.write(expert, trajectory, {**meta, "test_accuracy": float(score)})
            meter.note = f"test accuracy {100 * float(scores.mean()):.1f} %"
    return found
