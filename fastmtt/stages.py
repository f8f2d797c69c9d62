"""Stages of a distillation (PDD: Chen et al., ICLR 2024, arXiv 2310.06982).

A run is a list of stages. Each adds images to those of the stages before it, which stay as they
are, and matches experts that begin where training on these ended: what one stage's images taught a
network, the next stage's need not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt import draws, evaluation
from fastmtt.at_once import together
from fastmtt.data import DataSet
from fastmtt.experts import unfinished
from fastmtt.experts.published import Experts
from fastmtt.experts.store import TrajectoryStore
from fastmtt.experts.trainer import train_experts
from fastmtt.experts.unfinished import Unfinished
from fastmtt.kept_scores import digest_of
from fastmtt.progress import Meter, say
from fastmtt.protocol import Protocol
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import Synthetic
from fastmtt.training import Network, Recipe


@dataclass(frozen=True)
class Stage:
    """Where a distillation stands among its run's stages.

    Attributes:
        sets: what each stage before it distilled, all images up to it, at its learning rate.
    """

    sets: tuple[Synthetic, ...] = ()

    @property
    def number(self) -> int:
        """Of the stage, counted from 0."""
        return len(self.sets)

    @property
    def earlier(self) -> Synthetic | None:
        """What the stages before it distilled; None for the first stage."""
        return self.sets[-1] if self.sets else None

    @property
    def frozen(self) -> int:
        """How many of the set's first rows are earlier stages' and stay as they are."""
        return 0 if self.earlier is None else len(self.earlier.images)

    def seed(self, seed: int) -> int:
        """The seed of this stage's draws; the first one's is the run's own."""
        return draws.torch_seed(seed, "stage", self.number) if self.number else seed

    def joined(self, new: Synthetic) -> Synthetic:
        """This stage's set: earlier images, then new ones, at the new ones' learning rate."""
        if self.earlier is None:
            return new
        images, labels = (
            torch.cat([old.to(fresh), fresh.detach()])
            for old, fresh in (
                (self.earlier.images, new.images),
                (self.earlier.labels, new.labels),
            )
        )
        return new.with_tensors(images, labels, new.lr)


FIRST = Stage()


def stage_file(folder: Path, number: int) -> Path:
    """Where a run keeps the best set of a stage that is done, all images up to it."""
    return folder / f"distilled_stage_{number + 1}.safetensors"


def experts_folder(folder: Path, number: int) -> Path:
    """Where a run keeps the experts of a later stage."""
    return folder / f"experts_stage_{number + 1}"


def first_snapshots(store: Experts, experts: list[int], count: int) -> Tensor:
    """Weights [count,P] that experts begin with, the first again where they are too few."""
    chosen = [experts[i % len(experts)] for i in range(count)]
    return torch.stack([store.segment(expert, 0, 0)[0] for expert in chosen])


def trained_on_set(
    student: Network,
    theta: Tensor,
    distilled: Synthetic,
    protocol: Protocol,
    stage: Stage,
    members: list[int],
    meter: Meter | None = None,
) -> Tensor:
    """Weights [S,P] after training on a set, as an evaluation trains, from ``theta``."""
    return evaluation.trained_on(
        student,
        theta,
        evaluation.examples_of(distilled),
        float(distilled.lr.detach()),
        replace(protocol, seed=stage.seed(protocol.seed)),
        "transition",
        members,
        (lambda: None) if meter is None else meter.step,
    )


def continue_experts(
    store: TrajectoryStore,
    before: Experts,
    experts: list[int],
    dataset: DataSet,
    protocol: Protocol,
    recipe: Recipe,
    stage: Stage,
    meta: Mapping[str, Any],
) -> TrajectoryStore:
    """Train a stage's experts: on the set so far from their earlier start, then on real images.

    What an earlier call left unfinished is gone on with.

    Args:
        store: where they go.
        before: the stage before's experts, which give the weights to begin with.
        experts: their numbers there.
        dataset: the real data.
        protocol: how networks are trained on the set.
        recipe: how they are trained on real images.
        stage: the stage they are for.
        meta: what to store beside them.
    """
    assert stage.earlier is not None
    missing = [expert for expert in experts if expert not in store.indices()]
    if missing:
        say(f"stage {stage.number + 1}: {len(missing)} experts go on where the images so far end")
    network = make_network(
        protocol.model, image_shape=dataset.image_shape, classes=len(dataset.classes)
    )
    student = make_student(network, dataset.image_shape, precision=protocol.precision)
    distilled = stage.earlier.to(dataset.test_labels.device)
    begun = [e for e in missing if unfinished.load(store, e, student.size) is not None]
    to_begin = torch.tensor([expert for expert in missing if expert not in begun])
    examples = evaluation.examples_of(distilled)
    at_once = 1
    if len(to_begin):
        usual = protocol.recipe(examples, [evaluation.REAL_LR])
        at_once = together(student, examples, usual, len(to_begin))
    groups = to_begin.split(at_once)
    steps = evaluation.epoch_steps(examples, protocol) * protocol.length
    with Meter(steps * len(groups) if len(to_begin) else 0, "transition") as meter:
        for group in groups if len(to_begin) else ():
            members = group.tolist()
            theta = first_snapshots(before, members, len(members)).to(distilled.images)
            theta = trained_on_set(student, theta, distilled, protocol, stage, members, meter)
            for expert, row in zip(members, theta.cpu(), strict=True):
                unfinished.save(store, expert, Unfinished([row], None), meta)
    if missing:
        train_experts(
            store,
            dataset,
            protocol.model,
            recipe,
            meta,
            experts=missing,
            at_once=None,
            seed=stage.seed(protocol.seed),
        )
    return store


def transition_recipe(protocol: Protocol, stage: Stage) -> dict[str, Any]:
    """What a stage's experts saw before real images, as it is stored beside them."""
    assert stage.earlier is not None
    tensors = [*stage.earlier.tensors().values()]
    return {
        "stage": stage.number + 1,
        "after": digest_of({"epochs": protocol.epochs, "batch": protocol.batch_train}, tensors),
    }
