"""What a distillation descends: the one interface of trajectory matching and gradient matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from fastmtt.choices import Choices
from fastmtt.data import DataSet, Normalised, Space
from fastmtt.decode import Decode, InPixels
from fastmtt.errors import FastmttError
from fastmtt.experts.published import Experts
from fastmtt.options import DistillConfig
from fastmtt.parametrisation import PIXELS, Canvas, Pixels
from fastmtt.run import State
from fastmtt.smoothing import MovingAverage
from fastmtt.stages import Stage
from fastmtt.student import Student
from fastmtt.synthetic import Synthetic


@dataclass(frozen=True)
class Setting:
    """What an objective is made for.

    Attributes:
        config: the run's.
        dataset: the real data.
        stage: of the run.
        choices: where randomness comes from.
        network: whose weights or gradients are matched.
        student: the same, as the two verbs.
        count: rows of the set, those of earlier stages included.
        parametrisation: the set's.
    """

    config: DistillConfig
    dataset: DataSet
    stage: Stage
    choices: Choices
    network: nn.Module
    student: Student
    count: int
    parametrisation: Pixels


class Told(NamedTuple):
    """What an outer iteration was like.

    Attributes:
        loss: what it descended.
        lr: the set's learning rate behind it.
        finite: whether all images are numbers.
        passes: whether anything was changed.
    """

    loss: float
    lr: float
    finite: bool
    passes: bool = True


class Objective(Protocol):
    """Outer iterations on one stage's set.

    Attributes:
        average: of the images over the iterations, where one is kept.
        rates: the keys to lower where an iteration goes astray.
    """

    average: MovingAverage | None
    rates: str

    def learn(self, made: Synthetic) -> None:
        """Take a set to change from now on, without any momentum yet."""
        ...

    def open(self, store: Experts | None, experts: list[int]) -> None:
        """Take the experts that the run has, by their numbers in a store."""
        ...

    def step(self, iteration: int) -> Told:
        """One outer iteration on the set, in place."""
        ...

    def state(self, iteration: int) -> State:
        """What going on with this iteration depends on, besides the set: tensors, JSON values."""
        ...

    def restore(self, state: State) -> None:
        """Go on from a run's state, once its set is learned.

        Raises:
            KeyError, TypeError, ValueError: it lacks something, or is of another set.
        """
        ...

    def evaluated_from(self, networks: int) -> Tensor | None:
        """Weights [networks,P] that know a later stage's earlier sets; None: fresh ones.

        Fresh networks are trained on these sets first, as their protocol has it.
        """
        ...


def stored_as(config: DistillConfig, space: Space) -> Pixels:
    """What the images of a configuration's set are stored as.

    Raises:
        FastmttError: gradients are matched on images whose space has no pixels.
    """
    stored = PIXELS
    if config.texture:
        stored = Canvas(config.canvas_size, config.canvas_samples)
    elif config.factor > 1:
        stored = Decode(config.factor, config.decode_type, config.batch_syn_max)
    if config.objective == "matching":
        return stored
    if not isinstance(space, Normalised):
        raise FastmttError(
            "objective gradmatch stores images in [0,1] and normalises them to train, but the data "
            "are whitened; set zca to false"
        )
    return InPixels(stored, space.mean, space.std)
