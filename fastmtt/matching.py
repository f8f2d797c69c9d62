"""The matching objective: the student's distance to the expert after N steps on synthetic data.

L = |theta_N - theta*|^2 / |theta_0 - theta*|^2, over the parameters kept, averaged over the S
segments (Cazenavette et al., 2022). One autograd node; backward runs the adjoint sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastmtt.arguments import (
    Theta,
    check_batch,
    check_count,
    check_examples,
    check_options,
    check_precision,
    check_rates,
    check_theta,
    flatten_theta,
    refuse_changed,
    versions,
)
from fastmtt.augment import DSA
from fastmtt.batches import Augment, Draws, draw
from fastmtt.capture import Latest
from fastmtt.iteration import Inputs, Iteration, Keep, Options, key
from fastmtt.ops import backends
from fastmtt.parametrisation import PIXELS, Pixels
from fastmtt.student import LossFunction, Room, Student, make_student
from fastmtt.sweeps import Gradient
from fastmtt.unroll import refuse_graph

_KEPT = 2  # iterations, by the shapes of their inputs and draws


class TrajectoryMatcher(nn.Module):
    """The matching loss as a module without parameters; owns the memory of its sweeps.

    One forward's backward must come before the next forward of the same matcher.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        steps: int,
        batch_size: int | None = None,
        gradient: Gradient = "exact",
        loss_fn: LossFunction | None = None,
        augment: Augment | None = None,
        keep: Keep | None = None,
        parametrisation: Pixels = PIXELS,
        precision: str | None = None,
        memory: int | None = None,
        backend: str | None = None,
        graph: bool = True,
    ) -> None:
        """Fix everything that does not change between iterations.

        Args:
            student: a module from images [B,C,H,W] to logits [B,K]; its weights are not used.
            steps: N, SGD steps on the synthetic set.
            batch_size: synthetic images a step; None for all of them.
            gradient: "exact", "tesla" (first order, Cui et al., 2023) or ("truncated", k).
            loss_fn: ``loss_fn(logits, labels) -> scalar``; None for cross-entropy.
            augment: a ``fastmtt.DSA``, or any differentiable function of a batch of images; of
                the latter the output and its graph are kept for every step.
            keep: parameters that count: a boolean mask [P], indices into the flat vector, or a
                function from squared distances [P] to either.
            parametrisation: what training images are made of; the images given are stored ones.
            precision: of what float32 convolutions multiply; sums, statistics and weights stay
                float32. None is "fp32" on a CPU, and on a GPU "tf32" unless torch's switch
                ``torch.backends.cudnn.allow_tf32`` forbids it; "bf16" rounds to bfloat16, but in a
                ConvNet's convolutions of fewer than 16 input channels, as its first one.
            memory: bytes the tape may take beyond theta_t and g_t; None for none.
            backend: force a backend; see ``python -m fastmtt.info``.
            graph: whether a GPU's work is recorded as CUDA graphs where it can be; changes no bit.

        Raises:
            ValueError: an option is out of range or unknown.
        """
        super().__init__()
        check_options(gradient, precision, memory)
        check_count("steps", steps)
        if batch_size is not None:
            check_count("batch_size", batch_size)
        if augment is not None and not isinstance(augment, DSA) and not callable(augment):
            raise ValueError(
                f"augment must be a fastmtt.DSA or a function of images, got {augment!r}"
            )
        self._module = (student,)  # in a tuple: its parameters are not ours
        self.steps, self.batch_size, self.augment = steps, batch_size, augment
        self.loss_fn, self.precision, self.backend = loss_fn, precision, backend
        self._options = Options(gradient, augment, keep, memory, graph, parametrisation)
        self.parametrisation = parametrisation
        self._room = Room()
        self._iterations: Latest[Iteration] = Latest(_KEPT)
        self._last: Iteration | None = None
        self._calls = 0

    def forward(
        self,
        start: Theta,
        target: Theta,
        images: Tensor,
        labels: Tensor,
        lr: Tensor | float,
        *,
        indices: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """The matching loss, a scalar; ``.backward()`` runs the adjoint sweep.

        Args:
            start: expert weights theta_0, flat [P] or [S,P] in ``named_parameters()`` order, or a
                dict of tensors by parameter name.
            target: expert weights theta* of the same shape.
            images: synthetic images [n,C,H,W], as they are stored, shared by the segments.
            labels: class indices int64 [n] or probabilities [n,K].
            lr: the student's learning rate, a scalar or one a step [N].
            indices: rows of the set for each step, N tensors int64 [b] or [S,b]; None draws them.
            generator: gives this call its seed; None for torch's own.
            draws: rows and augmentation parameters made by ``fastmtt.batches.draw``; in place of
                ``indices`` and ``generator``.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; on a CPU also a start that equals
                its target. A GPU does not wait for that look: the loss is no finite number then,
                and :meth:`check_distance` says why.
        """
        start = flatten_theta(start, self._module[0], "start")
        target = flatten_theta(target, self._module[0], "target")
        kinds = [(list(t.shape), t.dtype, t.device) for t in (start, target)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"start and target must have one shape, dtype and device, got {kinds[0]} and "
                f"{kinds[1]}"
            )
        check_examples(images, labels, (), start, "the synthetic set")
        image_shape = self.parametrisation.image_shape(tuple(images.shape[1:]))
        student = make_student(
            self._module[0],
            image_shape,
            self.loss_fn,
            precision=self.precision,
            room=self._room,
        )
        check_theta(start, student.size, "start")
        check_precision(self.precision, start)
        check_batch(student, images, labels, 1, "the synthetic set")
        rates = check_rates(lr, self.steps, start)
        segments = 1 if start.dim() == 1 else start.shape[0]
        if draws is None:
            # given rows and an augmentation of the caller's own leave torch's generator alone
            drawn = indices is None or isinstance(self.augment, DSA)
            draws = draw(
                seed=_seed(generator) if drawn else 0,
                steps=self.steps,
                segments=segments,
                n=len(images),
                batch_size=self.batch_size,
                image_shape=image_shape,
                augment=self.augment,
                parametrisation=self.parametrisation,
                indices=indices,
            )
        self._calls += 1
        call = _Call(self, student, draws, self._calls, self.backend or backends.forced())
        two = (start, target) if start.dim() == 2 else (start[None], target[None])
        with backends.on_device(start):  # backward is called there by autograd
            loss: Tensor = _Match.apply(call, images, labels, rates, *two)
        return loss

    def forget(self) -> None:
        """Give back the memory of its sweeps; the next call takes what it needs anew."""
        self._iterations, self._last = Latest(_KEPT), None
        self._room.clear()

    def check_distance(self) -> None:
        """Look whether the last call's start and target differ in what counts.

        Raises:
            ValueError: they do not, in some segment.
        """
        scale = [] if self._last is None else self._last.scale.tolist()
        if not all(square > 0 for square in scale):
            raise ValueError(
                f"the distance from start to target must be positive in every segment, got squares "
                f"{scale}: start equals target, or keep keeps nothing that differs"
            )

    def _iteration(self, student: Student, inputs: Inputs, draws: Draws) -> Iteration:
        """The memory for such inputs, kept between calls."""
        self._last = self._iterations.get(
            key(inputs, draws), lambda: Iteration(student, self._options, inputs, draws)
        )
        return self._last


def match_trajectory(
    student: nn.Module,
    start: Theta,
    target: Theta,
    images: Tensor,
    labels: Tensor,
    lr: Tensor | float,
    *,
    steps: int,
    batch_size: int | None = None,
    gradient: Gradient = "exact",
    loss_fn: LossFunction | None = None,
    augment: Augment | None = None,
    keep: Keep | None = None,
    indices: Sequence[Tensor] | None = None,
    generator: torch.Generator | None = None,
    precision: str | None = None,
    memory: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """The matching loss in one call; arguments as in ``TrajectoryMatcher``.

    Returns:
        A scalar whose ``.backward()`` runs the adjoint sweep into images, labels, lr, start and
        target, whichever require grad.
    """
    matcher = TrajectoryMatcher(
        student,
        steps=steps,
        batch_size=batch_size,
        gradient=gradient,
        loss_fn=loss_fn,
        augment=augment,
        keep=keep,
        precision=precision,
        memory=memory,
        backend=backend,
    )
    loss: Tensor = matcher(start, target, images, labels, lr, indices=indices, generator=generator)
    return loss


@dataclass
class _Call:
    matcher: TrajectoryMatcher
    student: Student
    draws: Draws
    number: int
    backend: (
        str | None
    )  # what is forced here: backward may run in a thread that knows nothing of it


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *given: Tensor) -> Tensor:
        matcher, inputs = call.matcher, Inputs(*given)
        with backends.use(call.backend, matcher.precision):
            ctx.iteration = matcher._iteration(call.student, inputs, call.draws)
            loss: Tensor = ctx.iteration.forward(inputs, call.draws)
        if not loss.is_cuda:  # there the look would wait; see the callers' docstring
            matcher.check_distance()
        ctx.call = call
        ctx.save_for_backward(*inputs)
        ctx.given, ctx.versions = inputs, versions(inputs)
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        call: _Call = ctx.call
        _refuse_stale(ctx)
        _ = ctx.saved_tensors  # torch refuses here what was freed: a second backward not announced
        with backends.use(call.backend, call.matcher.precision):
            return None, *ctx.iteration.backward(g, ctx.needs_input_grad[1:])


def _refuse_stale(ctx: Any) -> None:
    if ctx.call.matcher._calls != ctx.call.number:
        raise RuntimeError(
            "this matcher ran forward again before this loss's backward, and its memory now holds "
            "the later run: call backward first, or use a second TrajectoryMatcher"
        )
    refuse_changed(ctx.given, ctx.versions, "images, labels, lr, start or target")


def _seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))
