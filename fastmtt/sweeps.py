"""Forward sweep and adjoint sweep: the exact gradient through N steps of SGD at constant memory.

Forward, theta_{t+1} = theta_t - lr_t g_t, keeping theta_t and g_t. Backward, from the cotangent
lambda_N, one tangent of the gradient a step gives everything:

    dL/dx_t = -lr_t dx     dL/dy_t = -lr_t dy     dL/dlr_t = -<g_t, lambda_{t+1}>
    lambda_t = lambda_{t+1} - lr_t H lambda_{t+1}

No autograd graph crosses a step. ``tesla`` leaves lambda as it is (Cui et al., 2023, drop the
H lambda term); ``("truncated", k)`` stops after the last k steps: what earlier ones add to theta
counts as constant.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastmtt import ops
from fastmtt.student import Student, Tape
from fastmtt.student.base import TapeOption

Gradient = str | tuple[str, int]
_ALIGNED = 32  # floats


class Steps(Protocol):
    """Where the sweeps get a step's batch from, and where its cotangents go."""

    needs: frozenset[str]  # of "x" and "y": which cotangents are wanted

    def __len__(self) -> int:
        """N."""
        ...

    def rows(self, t: int) -> int:
        """How many images step t's batch has for each student."""
        ...

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Images [S,B,...] and labels [S,B] or [S,B,K] of step t; the same on every call."""
        ...

    def pull_back(self, t: int, gx: Tensor | None, gy: Tensor | None) -> None:
        """Take the cotangents of step t's batch."""
        ...


@dataclass
class Record:
    """What the forward sweep leaves for the adjoint sweep: packed thetas, gradients, tapes."""

    thetas: Tensor  # [N+1,S,P]
    gradients: Tensor  # [N,S,P]
    tapes: list[Tape]
    adjoint: Tensor  # [S,P], the adjoint sweep's own
    hv: Tensor  # [S,P], likewise

    @classmethod
    def empty(cls, steps: int, theta: Tensor) -> Record:
        """Room for ``steps`` steps of weights like ``theta`` [S,P]."""
        with torch.inference_mode(False):  # it may serve later calls outside of such a block
            return cls(
                empty_rows(theta, steps + 1),
                empty_rows(theta, steps),
                [Tape() for _ in range(steps)],
                empty_rows(theta),
                empty_rows(theta),
            )


def empty_rows(theta: Tensor, *front: int) -> Tensor:
    """Room for weights like ``theta`` [S,P], any number of times: [*front,S,P].

    On a GPU each student's row begins at a multiple of 128 bytes, as its loads want it.
    """
    size = theta.shape[-1]
    row = -(-size // _ALIGNED) * _ALIGNED if theta.device.type != "cpu" else size
    return theta.new_empty(*front, len(theta), row)[..., :size]


def check_gradient(gradient: Gradient) -> tuple[str, int | None]:
    """The kind of gradient and, for a truncated one, its number of steps; ValueError if unknown."""
    match gradient:
        case "exact" | "tesla":
            return str(gradient), None
        case ("truncated", int(k)) if k >= 1:
            return "truncated", k
    raise ValueError(
        f"gradient must be 'exact', 'tesla' or ('truncated', k) with k >= 1, got {gradient!r}"
    )


def first_step(gradient: Gradient, steps: int) -> int:
    """The earliest of N steps that the adjoint sweep visits."""
    last = check_gradient(gradient)[1]
    return 0 if last is None else max(0, steps - last)


def forward_sweep(
    student: Student,
    theta: Tensor,
    steps: Steps,
    lr: Tensor,
    memory: int | None = None,
    room: Record | None = None,
    gradient: Gradient = "exact",
) -> Record:
    """Run the N steps.

    Args:
        student: the network.
        theta: packed start weights [S,P].
        steps: the batches.
        lr: learning rate of each step [N].
        memory: bytes the tapes may take beyond thetas and gradients; None for none.
        room: a record of so many steps of such weights to write into.
        gradient: what the adjoint sweep will be asked for: steps it leaves out keep nothing.
    """
    record = room if room is not None else Record.empty(len(steps), theta)
    record.thetas[0] = theta
    for t in range(len(steps)):
        x, y = steps.batch(t)
        if t == 0:
            images = [len(theta) * steps.rows(i) for i in range(len(steps))]
            first = first_step(gradient, len(steps))
            kept = plan_tape(student.tape_options(x), images, memory or 0, first)
            for tape, keep in zip(record.tapes, kept, strict=True):
                tape.keep = keep
        _, g = student.gradient(record.thetas[t], x, y, record.tapes[t], record.gradients[t])
        ops.sgd_update(record.thetas[t], g, lr[t], into=[record.thetas[t + 1]])
    return record


def adjoint_sweep(
    student: Student,
    record: Record,
    steps: Steps,
    lr: Tensor,
    adjoint: Tensor,
    gradient: Gradient = "exact",
    cotangents: dict[int, Tensor] | None = None,
    need_start: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the steps backward, sending each batch's cotangents to ``steps``.

    Args:
        student: the network of the forward sweep.
        record: what it left.
        steps: its batches.
        lr: its learning rates [N].
        adjoint: lambda_N, the packed cotangent of theta_N [S,P].
        gradient: "exact", "tesla" or ("truncated", k).
        cotangents: further packed cotangents of theta_t, by t < N.
        need_start: whether lambda_0 is wanted; without it step 0 spares its share of work.

    Returns:
        lambda_0 [S,P] and the cotangents of the learning rates [N].
    """
    kind, first = check_gradient(gradient)[0], first_step(gradient, len(steps))
    dots, rates = adjoint.new_zeros(len(lr), len(adjoint)), -lr
    cotangents = cotangents or {}
    for t in reversed(range(first, len(steps))):
        ops.dot(record.gradients[t], adjoint, into=[dots[t]])
        moves = kind != "tesla" and (t > first or need_start)
        needs = steps.needs | {"theta"} if moves else steps.needs
        if needs:
            x, y = steps.batch(t)
            hv, gx, gy = student.tangent(
                adjoint, record.thetas[t], x, y, record.tapes[t], needs, record.hv
            )
            steps.pull_back(t, _scaled(gx, rates[t]), _scaled(gy, rates[t]))
            if hv is not None:
                adjoint = ops.sgd_update(adjoint, hv, lr[t], into=[record.adjoint])
        if t in cotangents:
            adjoint = adjoint + cotangents[t]
    for t in range(first):
        if t in cotangents:
            adjoint = adjoint + cotangents[t]
    return adjoint, -dots.sum(1).to(lr.dtype)


def plan_tape(
    options: Sequence[TapeOption], images: Sequence[int], memory: int, first: int = 0
) -> list[frozenset[Hashable]]:
    """Which keys each step keeps: the most work saved per byte first, the last steps first.

    Args:
        options: what there is to keep.
        images: each step's number of images.
        memory: bytes for all steps together.
        first: the earliest step that keeps anything.
    """
    kept: list[set[Hashable]] = [set() for _ in images]
    for option in options:
        for t in reversed(range(first, len(images))):
            size = images[t] * option.bytes
            if size <= memory:
                memory -= size
                kept[t].add(option.key)
    return [frozenset(keys) for keys in kept]


def _scaled(g: Tensor | None, factor: Tensor) -> Tensor | None:
    return None if g is None else g.mul_(factor.to(g.dtype))
