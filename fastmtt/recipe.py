"""What students are trained on and how: examples, GSAM's radius, schedules, recipes, as data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fastmtt.augment import Parameters
from fastmtt.cutmix import CutMix
from fastmtt.parametrisation import PIXELS, Pixels


class Images(Protocol):
    """Images [n,C,H,W] float32: a tensor, or what makes one of the rows it is asked for."""

    @property
    def shape(self) -> torch.Size:
        """[n,C,H,W]."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the rows come to lie."""
        ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Rows int64 of any shape to [*rows.shape,C,H,W]."""
        ...

    def split(self, size: int, /) -> Iterable[Tensor]:
        """All rows, so many at a time."""
        ...


@dataclass(frozen=True)
class Examples:
    """Images with labels, shared by the students or one set each.

    Attributes:
        images: [n,C,H,W], or a tensor [S,n,C,H,W].
        labels: int64 [n] or probabilities [n,K], or the same with S in front.
        shared: whether all students see one set.
        parametrisation: what training images are made of, where ``images`` are stored ones.
    """

    images: Images
    labels: Tensor
    shared: bool = True
    parametrisation: Pixels = PIXELS

    @property
    def count(self) -> int:
        """n."""
        return self.images.shape[0 if self.shared else 1]

    @property
    def image_shape(self) -> tuple[int, ...]:
        """A training image's (C, H, W)."""
        return self.parametrisation.image_shape(tuple(self.images.shape[-3:]))

    def pick(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Each student's rows [S,b]: stored images [S,b,...] and labels [S,b] or [S,b,K]."""
        if self.shared:
            return self.images[rows], self.labels[rows]
        students = torch.arange(len(rows), device=rows.device)[:, None]
        return cast(Tensor, self.images)[students, rows], self.labels[students, rows]

    def of(self, students: Tensor) -> Examples:
        """The same for some of the students."""
        if self.shared:
            return self
        return replace(self, images=self.images[students], labels=self.labels[students])


@dataclass(frozen=True)
class Sharpness:
    """GSAM: the step's gradient is taken uphill, less what leads away from it there.

    Each student's weights w climb by e = rho * w^2 g / || |w| g || (adaptive) or rho * g / ||g||;
    with the gradient g' there, its direction is g' - alpha * (g - <g, g'> g' / ||g'||^2). It is
    FTD's optimiser (arXiv 2211.11004); alpha 0 makes it SAM, or ASAM where adaptive.

    Attributes:
        rho: radius of the climb.
        alpha: weight of what is subtracted.
        adaptive: measure each weight by its size.
    """

    rho: float
    alpha: float
    adaptive: bool = True


class Schedule(Protocol):
    """Which examples are seen in which epoch."""

    def rows(self, epoch: int) -> Tensor:
        """The epoch's rows of the examples, counted from 0: int64 [m], each once."""
        ...

    def describe(self) -> dict[str, Any]:
        """What must be equal for the rows to be, as JSON values."""
        ...


class Augmentation(Protocol):
    """What changes the images of a batch, by draws that are data; DSA is one."""

    def draw(self, rng: np.random.Generator, batch: int, image_shape: Sequence[int]) -> Parameters:
        """Parameters of one student's batch, by key."""
        ...

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Augment images [S,B,C,H,W]."""
        ...


@dataclass(frozen=True)
class Recipe:
    """How students are trained: SGD over shuffled epochs, the last partial batch kept.

    Attributes:
        epochs: number of epochs.
        batch_size: images a step.
        lr: learning rate, one for all students or one each.
        momentum: SGD's momentum.
        weight_decay: added to the gradient as weight_decay * theta.
        decay_after: index of the epoch after which lr drops to a tenth and the momentum is
            forgotten, as a new optimiser would; None for a constant lr.
        augment: of every batch, or None.
        sharpness: GSAM's direction in place of the gradient, or None.
        schedule: which examples an epoch sees, or None for all.
        precision: what the student is to be made with (``make_student``).
        graph: whether steps on a GPU are recorded as CUDA graphs where they can be.
        sparse_ratio: share of an expert's convolution weights that is pruned.
        cutmix: CutMix on every batch, behind the augmentation, or None.
        milestones: numbers of epochs done at which lr is multiplied by ``gamma``, the momentum
            kept.
        gamma: see ``milestones``.
    """

    epochs: int
    batch_size: int
    lr: float | Sequence[float]
    momentum: float = 0.0
    weight_decay: float = 0.0
    decay_after: int | None = None
    augment: Augmentation | None = None
    sharpness: Sharpness | None = None
    schedule: Schedule | None = None
    precision: str | None = None
    graph: bool = True
    sparse_ratio: float = 0.0
    cutmix: CutMix | None = None
    milestones: tuple[int, ...] = ()
    gamma: float = 0.2

    def steps(self, epoch: int, count: int) -> int:
        """Steps an epoch takes over so many examples."""
        seen = count if self.schedule is None else len(self.schedule.rows(epoch))
        return -(-seen // self.batch_size)
