"""Who takes part in a matching step on the device, in one shape: a function to the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastmtt
from bench import adjoint, naive
from bench.gpu.device import DEVICE, ON_GPU
from bench.naive import Gradients
from bench.problem import CHANNELS, CLASSES, DEPTH, IMAGE, Problem, Size
from bench.worker import EAGER
from fastmtt.student.zoo import make_network

# ours by name: the backend, whether iterations are recorded as CUDA graphs, and ``memory=``
OURS = {
    "ours, fused": ("triton", True, 0),
    "ours, fused, 2 GB kept": ("triton", True, 2 * 10**9),
    "ours, cuDNN convolutions": ("reference", True, 0),
    "ours, fused, no graph": ("triton", False, 0),
}
JUDGE, JUDGE_TESLA = "naive", "naive tesla"
# in the order in which they are measured
OPPONENTS = ("naive", "torch.func", "tesla, two passes")
SLOW_STARTERS = ("jax", "torch.func, compiled")
COMPILERS = {"torch.func": EAGER, "torch.func, compiled": "inductor"}


def on_device(problem: Problem) -> Problem:
    """The problem's tensors there."""
    names = ("start", "target", "images", "labels", "lr")
    moved = {name: getattr(problem, name).to(DEVICE) for name in names}
    return replace(problem, **moved, indices=[rows.to(DEVICE) for rows in problem.indices])


def contender(
    name: str, problem: Problem, segments: int = 1, *, channels_last: bool = False
) -> Callable[[], Gradients]:
    """What one matching step by ``name`` is: a function without arguments, ready to be timed.

    Args:
        name: one of the names above.
        problem: its inputs, on the device; its size's precision is "fp32", "tf32" or "bf16".
        segments: how many at once, all with the problem's weights, each in an order of its own,
            so that the gradients of their mean are one's; ours alone can do more than one.
        channels_last: the judges' convolutions in that layout; public programs leave the default.
    """
    p, size = problem, problem.size
    inputs = (p.start, p.target, p.images, p.labels, p.lr, p.indices)
    torch.backends.cudnn.allow_tf32 = size.precision != "fp32"  # bf16 leaves our first layer out
    if name in OURS:
        return ours(name, problem, segments)
    if segments != 1:
        raise ValueError(f"{name} matches one segment at a time, got {segments}")
    if name == "jax":
        from bench.gpu import in_jax

        return in_jax.contender(problem)
    inner = "bf16" if size.precision == "bf16" else "fp32"
    shape = (CHANNELS, IMAGE, CLASSES, DEPTH, size.width, inner)
    if name in COMPILERS:
        verbs = adjoint.verbs(*shape, COMPILERS[name])
        cast = adjoint.Verbs(*(_cast(verb, size) for verb in verbs))
        return partial(adjoint.match, cast, *inputs)
    run: Callable[..., Gradients] = {
        JUDGE: naive.match,
        JUDGE_TESLA: naive.match_first_order,
        "tesla, two passes": match_tesla,
    }[name]
    net = naive.Reparametrised(naive.ConvNet(*shape).to(DEVICE), channels_last)
    return partial(run, _Cast(net, size), *inputs)


def autocast(size: Size) -> AbstractContextManager[Any]:
    """PyTorch's bfloat16 for a figure in that precision; nothing for another."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=size.precision == "bf16")


class _Cast(nn.Module):
    """A network's forward under autocast where the size says so."""

    def __init__(self, net: nn.Module, size: Size) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor, flat: Tensor) -> Tensor:
        with autocast(self.size):
            return self.net(x, flat)


def _cast(verb: Callable[..., Any], size: Size) -> Callable[..., Any]:
    @wraps(verb)
    def run(*inputs: Tensor) -> Any:
        with autocast(size):
            return verb(*inputs)

    return run


def match_tesla(
    net: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    indices: Sequence[Tensor],
) -> Gradients:
    """TESLA's gradient at constant memory: the steps once, then each again with its graph."""
    thetas, total = [start], torch.zeros_like(start)
    for rows in indices:
        weights = thetas[-1].requires_grad_()
        loss = F.cross_entropy(net(images[rows], weights), labels[rows])
        (step,) = torch.autograd.grad(loss, weights)
        total += step
        thetas.append((weights - lr * step).detach())
    scale = (start - target).square().sum()
    end = 2 * (thetas.pop() - target) / scale
    g_images = torch.zeros_like(images)
    for rows, theta in zip(indices, thetas, strict=True):
        x, weights = images[rows].requires_grad_(), theta.requires_grad_()
        loss = F.cross_entropy(net(x, weights), labels[rows])
        (step,) = torch.autograd.grad(loss, weights, create_graph=True)
        (gx,) = torch.autograd.grad(step @ end, x)
        g_images.index_add_(0, rows, -lr * gx)
    distance = (end * scale / 2).square().sum() / scale
    return Gradients(distance.detach(), g_images, -(total @ end).detach())


def ours(
    name: str, problem: Problem, segments: int = 1, augment: fastmtt.DSA | None = None
) -> Callable[[], Gradients]:
    """As :func:`contender` of one of :data:`OURS`, on augmented images where asked for."""
    size, (backend, graph, memory) = problem.size, OURS[name]
    net = make_network(
        f"ConvNetD{DEPTH}W{size.width}", image_shape=(CHANNELS, IMAGE, IMAGE), classes=CLASSES
    )
    # tf32 by torch's own switch, set for every contender alike
    precision = "bf16" if size.precision == "bf16" else None
    matcher = fastmtt.TrajectoryMatcher(
        net.to(DEVICE),
        steps=size.steps,
        augment=augment,
        precision=precision,
        backend=backend if ON_GPU or backend == "reference" else None,
        graph=graph,
        memory=memory,
    )
    indices = [rows.cpu() for rows in problem.indices]  # where a run draws them
    if segments > 1:
        make = torch.Generator().manual_seed(1)
        indices = [
            torch.stack([rows[torch.randperm(len(rows), generator=make)] for _ in range(segments)])
            for rows in indices
        ]
    shape = (segments, *problem.start.shape)
    images, lr = (t.clone().requires_grad_() for t in (problem.images, problem.lr))
    fixed = problem.start.expand(shape).contiguous(), problem.target.expand(shape).contiguous()

    def match() -> Gradients:
        images.grad = lr.grad = None
        loss = matcher(*fixed, images, problem.labels, lr, indices=indices)
        loss.backward()
        assert images.grad is not None and lr.grad is not None
        return Gradients(loss.detach(), images.grad, lr.grad)

    return match
