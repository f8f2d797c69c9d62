"""One matching problem at a given size, and the contenders that solve it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastmtt
from bench import adjoint, naive
from bench.naive import Gradients
from bench.worker import EAGER
from fastmtt.student.zoo import make_network

CHANNELS, IMAGE, CLASSES, DEPTH = 3, 32, 10, 3
# fastmtt's contenders: the gradient and ``memory=``, the bytes that a tape may keep
OURS = {"tesla": ("tesla", 0), "exact": ("exact", 0), "exact, kept": ("exact", 10**9)}
PRECISIONS = ("fp32", "bf16")  # that fastmtt computes in; rows in another have its opponents alone


class Size(NamedTuple):
    """N steps on a set of ``batch`` images, all of them in every step; channels of a block.

    ``precision`` is the convolutions': "fp32", the dtype of the tensors, or "bf16".
    """

    steps: int
    batch: int
    width: int
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"N{self.steps}-batch{self.batch}-width{self.width}-{self.precision}"


@dataclass(frozen=True)
class Problem:
    """The inputs of a matching step on CIFAR-like images; plain tensors, hard labels."""

    size: Size
    start: Tensor
    target: Tensor
    images: Tensor
    labels: Tensor
    lr: Tensor
    indices: list[Tensor]

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another dtype, and convolutions in it."""
        floats = {
            name: getattr(self, name).to(dtype) for name in ("start", "target", "images", "lr")
        }
        return replace(self, size=self.size._replace(precision="fp32"), **floats)


def make_problem(size: Size, seed: int = 0) -> Problem:
    """Draw a problem; the target lies ten SGD steps on other images away from the start."""
    generator = torch.Generator().manual_seed(seed)

    def draw_images() -> tuple[Tensor, Tensor]:
        labels = torch.arange(size.batch) % CLASSES
        shades = torch.randn(CLASSES, CHANNELS, 1, 1, generator=generator)
        noise = torch.randn(size.batch, CHANNELS, IMAGE, IMAGE, generator=generator)
        return shades[labels] + noise, labels

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = naive.ConvNet(CHANNELS, IMAGE, CLASSES, DEPTH, size.width)
    start = _flat(net)
    images, labels = draw_images()
    every = [torch.arange(size.batch)] * 10
    naive.train(net, images, labels, every, lr=0.02, momentum=0.0, weight_decay=0.0)
    images, labels = draw_images()
    indices = [torch.randperm(size.batch, generator=generator) for _ in range(size.steps)]
    return Problem(size, start, _flat(net), images, labels, torch.tensor(0.02), indices)


def contender(
    name: str, problem: Problem, *, channels_last: bool = False, compiler: str = EAGER
) -> Callable[[], Gradients]:
    """What one matching step by ``name`` is: a function without arguments, ready to be timed.

    Args:
        name: "naive", "naive tesla" (the judge of tesla), "adjoint" or one of ``OURS``.
        problem: its inputs.
        channels_last: the naive's convolutions in that layout; public programs leave the default.
        compiler: the adjoint's; see :func:`bench.adjoint.verbs`.
    """
    p, (steps, _, width, precision) = problem, problem.size
    inputs = (p.start, p.target, p.images, p.labels, p.lr, p.indices)
    if name in OURS:
        net = make_network(
            f"ConvNetD{DEPTH}W{width}", image_shape=(CHANNELS, IMAGE, IMAGE), classes=CLASSES
        )
        gradient, memory = OURS[name]
        asked = None if precision == "fp32" else precision
        matcher = fastmtt.TrajectoryMatcher(
            net, steps=steps, gradient=gradient, precision=asked, memory=memory
        )
        return partial(_match, matcher, *inputs)
    shape = (CHANNELS, IMAGE, CLASSES, DEPTH, width, precision)
    if name == "adjoint":
        return partial(adjoint.match, adjoint.verbs(*shape, compiler), *inputs)
    run = {"naive": naive.match, "naive tesla": naive.match_first_order}[name]
    return partial(run, naive.Reparametrised(naive.ConvNet(*shape), channels_last), *inputs)


def prepare(name: str, compiler: str = EAGER, **size: Any) -> Callable[[], Gradients]:
    """A contender by its name and the fields of its size, in a process of its own.

    Whatever a first call loads is loaded: by a tiny problem, or, where that means to compile for
    the shapes of a step, by one step.
    """
    problem = make_problem(Size(**size))
    if compiler == EAGER:
        first = make_problem(Size(1, 2, 8, problem.size.precision))
    else:
        first = replace(problem, indices=problem.indices[:1])
    contender(name, first, compiler=compiler)()
    return contender(name, problem, compiler=compiler)


def _match(
    matcher: fastmtt.TrajectoryMatcher,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    indices: list[Tensor],
) -> Gradients:
    images, lr = images.clone().requires_grad_(), lr.clone().requires_grad_()
    loss = matcher(start, target, images, labels, lr, indices=indices)
    loss.backward()
    assert images.grad is not None and lr.grad is not None
    return Gradients(loss.detach(), images.grad, lr.grad)


def parameters(width: int) -> int:
    """P, the number of weights."""
    return sum(
        p.numel() for p in naive.ConvNet(CHANNELS, IMAGE, CLASSES, DEPTH, width).parameters()
    )


def forward_flop(width: int) -> int:
    """F of one image: multiply-adds of convolutions and classifier, each counted as two."""
    flop, side, channels = 0, IMAGE, CHANNELS
    for _ in range(DEPTH):
        flop += 2 * 9 * channels * width * side * side
        side, channels = side // 2, width
    return flop + 2 * width * side * side * CLASSES


def _flat(net: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])
