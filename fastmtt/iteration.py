"""One matching iteration over tensors that stay in place, in parts a CUDA graph can hold.

A call copies its inputs to their places; the forward sweep and the adjoint sweep then read nothing
else, and look at nothing on the host. A keep of the caller's own is asked between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastmtt import ops
from fastmtt.augment import DSA
from fastmtt.batches import Augment, Draws, PlacedDraws, SyntheticSteps
from fastmtt.capture import Captured, can_capture, send
from fastmtt.ops import backends
from fastmtt.parametrisation import Pixels
from fastmtt.student import Student
from fastmtt.sweeps import Gradient, Record, adjoint_sweep, empty_rows, forward_sweep

Keep = Tensor | Callable[[Tensor], Tensor]
Needs = tuple[bool, bool, bool, bool, bool]  # in the order of Inputs


class Inputs(NamedTuple):
    """What an iteration is differentiated in.

    Attributes:
        images: [n,C,H,W], as they are stored.
        labels: int64 [n] or probabilities [n,K].
        lr: a scalar or one a step [N].
        start: [S,P], public order.
        target: [S,P].
    """

    images: Tensor
    labels: Tensor
    lr: Tensor
    start: Tensor
    target: Tensor


@dataclass(frozen=True)
class Options:
    """How to match; see :class:`fastmtt.TrajectoryMatcher`."""

    gradient: Gradient
    augment: Augment | None
    keep: Keep | None
    memory: int | None
    graph: bool
    parametrisation: Pixels


class Iteration:
    """The places of one iteration's inputs, and its two sweeps; serves all of one :func:`key`."""

    def __init__(self, student: Student, options: Options, inputs: Inputs, draws: Draws) -> None:
        """Make room for inputs and draws like these.

        Raises:
            ValueError: a keep that is no mask or index of the weights.
        """
        self.student, self.options = student, options
        with torch.inference_mode(False):  # it may serve later calls outside of such a block
            places = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs)
            self.inputs = Inputs(*places)
            start, steps = self.inputs.start, len(draws.indices)
            self.draws = PlacedDraws(draws, start.device)
            self.rates = start.new_empty(steps)
            self.record = Record.empty(steps, start)
            self.goal = empty_rows(start)
            self.ratio, self.scale = start.new_empty(2, len(start))
            self.g = start.new_empty(())  # the loss's cotangent
            self.keep = _keep_of(options.keep, student, start)
        self.steps = SyntheticSteps(
            self.inputs.images,
            self.inputs.labels,
            len(start),
            self.draws.draws,
            options.augment,
            options.parametrisation,
        )
        ours = options.augment is None or isinstance(options.augment, DSA)
        dsa = options.augment is not None
        self.graph = can_capture(options.graph and ours, student, dsa, start)
        self._forward: Captured[Tensor | None] = Captured(self.graph)
        self._adjoint: dict[Needs, Captured[list[Tensor | None]]] = {}

    def forward(self, inputs: Inputs, draws: Draws) -> Tensor:
        """The loss of these inputs, a scalar: each segment's distances stay for the way back."""
        for source, place in zip(inputs, self.inputs, strict=True):
            send(source, place)
        self.draws.put(draws)
        self.steps.begin()
        loss = self._forward(self._sweep)
        return self._judge() if loss is None else loss.clone()

    def backward(self, g: Tensor, needs: Needs) -> list[Tensor | None]:
        """The loss's gradients in the inputs that are needed, times ``g``."""
        send(g, self.g)
        if needs not in self._adjoint:
            self._adjoint[needs] = Captured(self.graph)
        found = self._adjoint[needs](partial(self._sweep_back, needs))
        return [None if t is None else t.clone() for t in found]

    def _sweep(self) -> Tensor | None:
        """To the loss, or where a keep of the caller's own decides it, to the last weights."""
        student, inputs, options = self.student, self.inputs, self.options
        self.goal.copy_(student.pack(inputs.target))
        self.rates.copy_(inputs.lr.expand_as(self.rates))
        theta = student.pack(inputs.start)
        forward_sweep(
            student, theta, self.steps, self.rates, options.memory, self.record, options.gradient
        )
        return None if callable(options.keep) else self._judge()

    def _judge(self) -> Tensor:
        """The mean over the segments of how far from the target the student ended."""
        first, last = self.record.thetas[0], self.record.thetas[-1]
        if callable(self.options.keep):
            assert self.keep is not None
            self.keep.copy_(_asked(self.options.keep, self.student, last - self.goal))
        distance = ops.sqdist(last, self.goal, self.keep)
        self.scale.copy_(ops.sqdist(first, self.goal, self.keep))
        torch.div(distance, self.scale, out=self.ratio)
        return self.ratio.mean()

    def _sweep_back(self, needs: Needs) -> list[Tensor | None]:
        student, record = self.student, self.record
        images, labels, lr, start, target = needs
        weight = (self.g / len(self.scale) / self.scale)[:, None]
        first, last = record.thetas[0], record.thetas[-1]
        at_start = self._kept(2 * weight * self.ratio[:, None] * (first - self.goal))
        at_end = self._kept(2 * weight * (last - self.goal))
        self.steps.want(images, labels)
        adjoint, g_lr = adjoint_sweep(
            student,
            record,
            self.steps,
            self.rates,
            record.adjoint.copy_(at_end),
            self.options.gradient,
            need_start=start,
        )
        scalar = self.inputs.lr.dim() == 0
        return [
            self.steps.gx,
            self.steps.gy,
            (g_lr.sum() if scalar else g_lr) if lr else None,
            student.unpack(adjoint - at_start) if start else None,
            student.unpack(at_start - at_end) if target else None,
        ]

    def _kept(self, vector: Tensor) -> Tensor:
        return vector if self.keep is None else vector * self.keep


def key(inputs: Inputs, draws: Draws) -> Hashable:
    """What an iteration's memory and recordings depend on, for one matcher."""
    tensors = tuple((tuple(t.shape), t.dtype, t.device) for t in inputs)
    return tensors, draws.shapes, backends.forced(), torch.backends.cudnn.allow_tf32


def _keep_of(keep: Keep | None, student: Student, like: Tensor) -> Tensor | None:
    """The packed boolean mask [S,P], or room for one that is chosen anew each time."""
    if keep is None:
        return None
    if callable(keep):
        return torch.empty_like(like, dtype=torch.bool)
    return student.pack(_as_mask(keep, like.shape[1], like.device).expand(like.shape))


def _asked(keep: Callable[[Tensor], Tensor], student: Student, difference: Tensor) -> Tensor:
    """The packed boolean mask [S,P] that the caller chooses by squares in the public order."""
    squares = student.unpack(difference.square())
    return student.pack(torch.stack([_as_mask(keep(row), len(row), row.device) for row in squares]))


def _as_mask(keep: Tensor, size: int, device: torch.device) -> Tensor:
    keep = torch.as_tensor(keep, device=device)
    if keep.dtype == torch.bool and tuple(keep.shape) == (size,):
        return keep
    if keep.dtype == torch.int64 and keep.dim() == 1:
        if len(keep) and not 0 <= int(keep.min()) <= int(keep.max()) < size:
            raise ValueError(
                f"keep's indices must lie in 0..{size - 1}, got {int(keep.min())} to "
                f"{int(keep.max())}"
            )
        return torch.zeros(size, dtype=torch.bool, device=device).index_fill_(0, keep, True)
    raise ValueError(
        f"keep must be a boolean mask [{size}] or int64 indices into the flat vector, got "
        f"{keep.dtype} {list(keep.shape)}"
    )
