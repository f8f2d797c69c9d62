"""No figure where results disagree: every contender proves its meta-gradient before it is timed.

Two checks for each: the precision rule on a small problem of the same width, five times,
against float64 autograd; then plain agreement of the float32 results at the figure's own size.
"""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

import torch

from bench.naive import Gradients
from bench.problem import Problem, Size, contender, make_problem


class Distances(NamedTuple):
    """Relative errors, each of a result's own norm."""

    loss: float
    images: float
    lr: float


JUDGES = {"exact": "naive", "tesla": "naive tesla"}
EXACT = 1e-9
# Between float32 results a few ReLUs are on in one and off in the other, and each moves its image's
# gradient as a whole. Over 14 problems that came to 3e-2 of the images' gradient at most, to 3e-4
# of the others; the two gradients judged here, exact and tesla, are 6e-2 to 3.7 apart in the rate.
FLIPPED = Distances(loss=1e-3, images=5e-2, lr=1e-3)


class Verdict(NamedTuple):
    """Relative errors that passed: in float64, then in float32 against PyTorch's own.

    PyTorch's own float32 error depends on the layout: oneDNN's convolutions for channels last sum
    in one chain and lie 2.7 times farther off than those for its default layout. Ours are judged
    in the layout they compute in; the default layout's error stands beside it.
    """

    float64: float
    float32: float
    torch_float32: float
    torch_float32_default_layout: float


def check_precision(name: str, size: Size, seeds: int = 5) -> Verdict:
    """Judge ``name`` against float64 autograd: 1e-9 in float64, twice PyTorch's own in float32.

    The float32 errors are medians over ``seeds`` problems, for one flipped ReLU outweighs rounding.

    Raises:
        AssertionError: it is not the gradient it claims to be.
    """
    judge, errors = JUDGES[name], []
    for seed in range(seeds):
        problem = make_problem(size, seed)
        double = problem.to(torch.float64)
        truth = contender(judge, double)()
        runs = [
            contender(name, double),
            contender(name, problem),
            contender(judge, problem, channels_last=True),
            contender(judge, problem),
        ]
        errors.append([max(distances(run(), truth)) for run in runs])
    verdict = Verdict(*(median(column) for column in zip(*errors, strict=True)))
    assert verdict.float64 <= EXACT, f"{name} at {size} is wrong in float64: {verdict}"
    assert verdict.float32 <= 2 * verdict.torch_float32, (
        f"{name} at {size} is less precise than PyTorch in float32: {verdict}; all: {errors}"
    )
    return verdict


def check_agreement(name: str, problem: Problem) -> Distances:
    """How far ``name`` and its judge are apart in float32 at a figure's own size.

    Raises:
        AssertionError: by more than flipped ReLUs explain.
    """
    found = distances(contender(name, problem)(), contender(JUDGES[name], problem)())
    assert all(d <= bar for d, bar in zip(found, FLIPPED, strict=True)), (
        f"{name} and {JUDGES[name]} disagree at {problem.size}: {found}, allowed {FLIPPED}"
    )
    return found


def distances(ours: Gradients, truth: Gradients) -> Distances:
    """The relative errors of a matching step's results."""
    pairs = [(a.double(), b.double()) for a, b in zip(ours, truth, strict=True)]
    return Distances(*(float((a - b).norm() / b.norm()) for a, b in pairs))
