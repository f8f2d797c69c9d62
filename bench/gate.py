"""No figure where results disagree: every contender proves its meta-gradient before it is timed.

Two checks for each: the precision rule on a small problem of the same width, five times, against
float64 autograd; then plain agreement of the results at the figure's own size.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from bench.naive import Gradients
from bench.problem import Size, contender, make_problem

JUDGES = {"tesla": "naive tesla"}  # the others' is "naive"
EXACT = 1e-9


class Distances(NamedTuple):
    """How far a matching step's results are from others."""

    loss: float
    images: float
    lr: float


# Between float32 results a few ReLUs are on in one and off in the other, and each moves its image's
# gradient as a whole. Over 14 problems that came to 3e-2 of the images' gradient at most, to 3e-4
# of the others; the two gradients judged here, exact and tesla, are 6e-2 to 3.7 apart in the rate.
# In bf16 many flip. PyTorch's own two layouts came to 3e-3 in 1 - cosine of the images' gradient,
# to 2e-3 in the loss and, where its gradient in the rate passes through zero, to 3e-2 in that.
ALLOWED = {
    "fp32": Distances(loss=1e-3, images=5e-2, lr=1e-3),
    "bf16": Distances(loss=1e-2, images=2e-2, lr=1e-1),
}


class Verdict(NamedTuple):
    """Errors that passed: in float64, then in the figure's precision against PyTorch's own.

    PyTorch's own float32 error depends on the layout: oneDNN's convolutions for channels last sum
    in one chain and lie 2.7 times farther off than those for its default layout. Ours are judged
    in the layout they compute in; the default layout's error stands beside it.
    """

    float64: float
    error: float
    torch_error: float
    torch_error_default_layout: float


def check_precision(name: str, size: Size, seeds: int = 5) -> Verdict:
    """Judge ``name`` against float64 autograd: 1e-9 in float64, else twice PyTorch's own error.

    The errors are medians over ``seeds`` problems, for one flipped ReLU outweighs rounding. That of
    float32 is the largest relative error of the results. That of bf16 is 1 - cosine of the images'
    gradient: each of its entries is off by some percent, in PyTorch as in anything, and what a
    distillation follows is the direction.

    Raises:
        AssertionError: it is not the gradient it claims to be.
    """
    judge, errors = JUDGES.get(name, "naive"), []
    for seed in range(seeds):
        problem = make_problem(size, seed)
        double = problem.to(torch.float64)
        truth = contender(judge, double)()
        exact = _largest(contender(name, double)(), truth)
        runs = [
            contender(name, problem),
            contender(judge, problem, channels_last=True),
            contender(judge, problem),
        ]
        errors.append([exact, *(_ERRORS[size.precision](run(), truth) for run in runs)])
    verdict = Verdict(*(median(column) for column in zip(*errors, strict=True)))
    assert verdict.float64 <= EXACT, f"{name} at {size} is wrong in float64: {verdict}"
    assert verdict.error <= 2 * verdict.torch_error, (
        f"{name} at {size} is less precise than PyTorch: {verdict}; all: {errors}"
    )
    return verdict


def check_agreement(name: str, size: Size, found: Gradients, judged: Gradients) -> Distances:
    """How far the results of ``name`` at a figure's own size are from its judge's.

    Raises:
        AssertionError: by more than flipped ReLUs explain.
    """
    distances, allowed = _distances(found, judged), ALLOWED[size.precision]
    if size.precision == "bf16":
        distances = distances._replace(images=_angle(found, judged))
    assert all(d <= bar for d, bar in zip(distances, allowed, strict=True)), (
        f"{name} and its judge disagree at {size}: {distances}, allowed {allowed}"
    )
    return distances


def one_minus_cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two tensors."""
    a, b = a.double().flatten(), b.double().flatten()
    return 1 - float(a @ b / (a.norm() * b.norm()))


def _distances(ours: Gradients, truth: Gradients) -> Distances:
    """Relative errors, each of the true result's own norm."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, truth, strict=True)]
    return Distances(*(float((a - b).norm() / b.norm()) for a, b in pairs))


def _largest(ours: Gradients, truth: Gradients) -> float:
    return max(_distances(ours, truth))


def _angle(ours: Gradients, truth: Gradients) -> float:
    return one_minus_cosine(ours.images, truth.images)


_ERRORS: dict[str, Callable[[Gradients, Gradients], float]] = {"fp32": _largest, "bf16": _angle}
