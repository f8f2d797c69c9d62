"""Matching every class's gradient as IDC does, against double backward one class after another."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import contest, floor
from bench.condensing import Match, contender, make_batches, prepare
from bench.contest import NAIVE, Results
from bench.gate import EXACT, one_minus_cosine
from bench.problem import CLASSES, PRECISIONS
from bench.report import Report
from bench.worker import DEFAULT, TUNED, Worker

# CIFAR-10 at 10 images a class, each of four: what a class's batches hold in the published program
SIZES = [Match(64, 40, 128), Match(64, 40, 128, "bf16")]
SMOKE_SIZES = [Match(3, 2, 8), Match(3, 2, 8, "bf16")]
SEEDS = 5
# Of the images' gradient, in 1 - cosine: the rule below judges precision, this whether at full size
# it is the same gradient, though some ReLUs differ. Another class's lies at 1.
APART = {"fp32": 1e-2, "bf16": 1e-1}


def test_gradient_match(size: Match, benchmark: Any, report: Report) -> None:
    ours = ("ours",) if size.precision in PRECISIONS else ()
    precision = _check_precision(size) if ours else None
    agreement = {}

    def judge(results: Results) -> None:
        for name, (_, found) in results.items():
            agreement[name] = one_minus_cosine(found.double(), results[NAIVE][1].double())
            assert agreement[name] <= APART[size.precision], f"{name}: {agreement[name]} at {size}"

    fields = size._asdict()
    contenders = {
        NAIVE: Worker(prepare, DEFAULT, name="naive", **fields),
        "naive tuned": Worker(prepare, TUNED, name="naive", **fields),
        **{name: Worker(prepare, DEFAULT, name=name, **fields) for name in ours},
    }
    convolutions = size.real, size.width, size.precision
    held = contest.hold(benchmark, contenders, judge, convolutions, smoke=report.smoke)
    matched = floor.total(held.best, floor.MATCHING) * size.synthetic / size.real
    least = CLASSES * (floor.total(held.best, floor.TRAINING) + matched)
    for name in contenders:
        row = {"contender": name, **fields, "classes": CLASSES, **held.columns(name, least)}
        if name in held.timed:
            row["agreement"] = agreement[name]
        if name in ours:
            row["precision_check"] = precision
        report.add("condensing", **row, convolutions_ms=floor.milliseconds(held.best))
        benchmark.extra_info[name] = row


def _check_precision(size: Match) -> dict[str, float]:
    """The precision rule on small matches of this width: equal to double backward in float64.

    In the match's precision no farther from it than twice PyTorch in the layout ours computes in,
    by the median over seeds and classes, each a problem of its own: one flipped ReLU outweighs
    rounding. It is the relative error of a class's images' gradient, in bf16 1 - cosine.
    """
    small = size._replace(real=2, synthetic=1)
    far = {"fp32": _relative, "bf16": one_minus_cosine}[size.precision]
    exact, errors, torch_errors = [], [], []
    for seed in range(SEEDS):
        batches = make_batches(small, seed)
        wide, double = batches.to(torch.float64), small._replace(precision="fp32")
        truth = contender("naive", double, wide)()[1]
        exact.append(_relative(contender("ours", double, wide)()[1], truth))
        ours = contender("ours", small, batches)()[1].double()
        naive = contender("naive", small, batches, channels_last=True)()[1].double()
        errors += [far(*pair) for pair in zip(ours, truth, strict=True)]
        torch_errors += [far(*pair) for pair in zip(naive, truth, strict=True)]
    found = {
        "float64": max(exact),
        "error": median(errors),
        "torch_error": median(torch_errors),
    }
    assert found["float64"] <= EXACT, f"{small}: {found}"
    assert found["error"] <= 2 * found["torch_error"], f"{small}: {found}"
    return found


def _relative(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())
