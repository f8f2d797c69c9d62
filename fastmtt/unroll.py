"""``unroll_sgd``: N differentiable steps of SGD as one autograd node, for any loss on top."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmtt.arguments import (
    Theta,
    check_batch,
    check_examples,
    check_options,
    check_precision,
    check_rates,
    check_theta,
    flatten_theta,
    refuse_changed,
    versions,
)
from fastmtt.ops import backends
from fastmtt.student import LossFunction, Student, make_student
from fastmtt.sweeps import Gradient, Record, adjoint_sweep, forward_sweep


def unroll_sgd(
    student: nn.Module,
    theta: Theta,
    batches: Iterable[tuple[Tensor, Tensor]],
    lr: Tensor | float,
    *,
    loss_fn: LossFunction | None = None,
    gradient: Gradient = "exact",
    at: Sequence[int] | None = None,
    precision: str | None = None,
    memory: int | None = None,
    backend: str | None = None,
) -> Any:
    """Train a student by plain SGD on given batches, differentiably, at constant memory.

    Args:
        student: a module from a batch to logits; its own weights are not used.
        theta: start weights, flat [P] or [S,P] in ``named_parameters()`` order, or a dict of
            tensors by parameter name (one student). May carry grad history.
        batches: one (x, y) a step; x [B,...], y int64 [B] or probabilities [B,K]; with theta
            [S,P] both have S in front. May carry grad history.
        lr: learning rate, a number, a scalar tensor or one a step [N]. May carry grad history.
        loss_fn: ``loss_fn(logits, labels) -> scalar``; None for cross-entropy.
        gradient: "exact", "tesla" or ("truncated", k).
        at: steps k in 0..N at which to return theta_k; None for theta_N alone.
        precision: as for ``TrajectoryMatcher``.
        memory: bytes the tape may take beyond theta_t and g_t; None for none.
        backend: force a backend; see ``python -m fastmtt.info``.

    Returns:
        theta_N in the form theta came in; a list of theta_k where ``at`` is given.

    Raises:
        ValueError: shapes that do not fit, an unknown gradient, a student that keeps statistics.
        RuntimeError: from backward, when its inputs were changed in between or a graph of it is
            asked for.
    """
    check_options(gradient, precision, memory)
    batches = list(batches)
    if not batches:
        raise ValueError("batches is empty: give one (x, y) for each step")
    flat = flatten_theta(theta, student, "theta")
    single = flat.dim() == 1
    steps, lead = len(batches), () if single else (len(flat),)
    for t, (x, y) in enumerate(batches):
        check_examples(x, y, lead, flat, f"batches[{t}]")
    xs = [x[None] if single else x for x, _ in batches]
    ys = [y[None] if single else y for _, y in batches]
    engine = make_student(student, tuple(xs[0].shape[2:]), loss_fn, precision=precision)
    check_theta(flat, engine.size, "theta")
    check_precision(precision, flat)
    for t in range(steps):
        check_batch(engine, xs[t], ys[t], 2, f"batches[{t}]")
    rates = check_rates(lr, steps, flat)
    marks = [steps] if at is None else list(at)
    if not all(0 <= k <= steps for k in marks):
        raise ValueError(f"at must lie in 0..{steps}, got {marks}")

    # autograd's own thread knows no backend that is forced around this call
    plan = _Plan(engine, steps, gradient, marks, memory, backend or backends.forced())
    thetas = _Unroll.apply(plan, flat if not single else flat[None], rates, *xs, *ys)
    found = [_in_form(t[0] if single else t, theta, engine) for t in thetas]
    return found[0] if at is None else found


class _Plan:
    """What one call computes; the autograd node's only non-tensor input."""

    def __init__(
        self,
        student: Student,
        steps: int,
        gradient: Gradient,
        marks: list[int],
        memory: int | None,
        backend: str | None,
    ) -> None:
        self.student, self.steps, self.gradient = student, steps, gradient
        self.marks, self.memory, self.backend = marks, memory, backend


class _Given:
    """Steps whose batches are the caller's tensors."""

    def __init__(self, batches: Sequence[Tensor], needs: frozenset[str]) -> None:
        half = len(batches) // 2
        self.x, self.y, self.needs = batches[:half], batches[half:], needs
        self.gx: list[Tensor | None] = [None] * half
        self.gy: list[Tensor | None] = [None] * half

    def __len__(self) -> int:
        return len(self.x)

    def rows(self, t: int) -> int:
        return self.x[t].shape[1]

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        return self.x[t], self.y[t]

    def pull_back(self, t: int, gx: Tensor | None, gy: Tensor | None) -> None:
        self.gx[t], self.gy[t] = gx, gy


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, theta: Tensor, lr: Tensor, *batches: Tensor
    ) -> tuple[Tensor, ...]:
        with backends.use(plan.backend):
            rates = lr.expand(plan.steps)
            record = forward_sweep(
                plan.student,
                plan.student.pack(theta),
                _Given(batches, frozenset()),
                rates,
                plan.memory,
                gradient=plan.gradient,
            )
            ctx.plan, ctx.record = plan, record
            ctx.save_for_backward(lr, *batches)
            ctx.given, ctx.versions = (lr, *batches), versions((lr, *batches))
            # copies: a view would keep all steps alive, and let a caller write into the record
            return tuple(plan.student.unpack(record.thetas[k]).clone() for k in plan.marks)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        refuse_graph()
        refuse_changed(ctx.given, ctx.versions, "images or labels of batches, or lr,")
        plan: _Plan = ctx.plan
        record: Record = ctx.record
        lr, *batches = ctx.saved_tensors
        _, need_theta, need_lr, *need_batches = ctx.needs_input_grad
        half = len(batches) // 2
        needs = {"x"} if any(need_batches[:half]) else set()
        needs |= {"y"} if any(need_batches[half:]) else set()
        steps = _Given(batches, frozenset(needs))
        with backends.use(plan.backend):
            injected: dict[int, Tensor] = {}
            for k, g in zip(plan.marks, cotangents, strict=True):
                packed = plan.student.pack(g)
                injected[k] = injected[k] + packed if k in injected else packed
            adjoint = injected.pop(plan.steps, torch.zeros_like(record.thetas[0]))
            start, g_lr = adjoint_sweep(
                plan.student,
                record,
                steps,
                lr.expand(plan.steps).contiguous(),
                adjoint,
                plan.gradient,
                injected,
                need_theta,
            )
        g_batches = [
            g if needed else None
            for g, needed in zip((*steps.gx, *steps.gy), need_batches, strict=True)
        ]
        return (
            None,
            plan.student.unpack(start) if need_theta else None,
            (g_lr if lr.dim() else g_lr.sum()) if need_lr else None,
            *g_batches,
        )


def refuse_graph() -> None:
    """RuntimeError inside a backward that was asked to record a graph of itself."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "create_graph=True through fastmtt's adjoint sweep would be a third derivative, which "
            "it does not give: drop create_graph, or use fastmtt.compat.ReparamModule in a loop "
            "of your own"
        )


def _in_form(flat: Tensor, like: Theta, student: Student) -> Theta:
    if isinstance(like, Tensor):
        return flat
    shapes = dict(zip(student.names, student.shapes, strict=True))
    sizes = [torch.Size(shape).numel() for shape in student.shapes]
    parts = dict(zip(student.names, flat.split(sizes), strict=True))
    return {name: parts[name].view(shapes[name]) for name in like}
