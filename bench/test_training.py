"""An expert's epoch and an evaluation, against plain PyTorch doing the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench import contest, floor, jobs
from bench.contest import NAIVE, Results
from bench.gate import EXACT, one_minus_cosine
from bench.jobs import Job, prepare, train_naive, train_ours
from bench.problem import PRECISIONS, forward_flop
from bench.report import Report
from bench.worker import DEFAULT, TUNED, Worker

_EPOCH, _EVALUATION = "a tenth of an epoch", "a tenth of the epochs and test images"
SIZES = [
    Job("expert", 1, 5120, 256, 1, 128, 0, "fp32", _EPOCH),
    Job("expert", 1, 5120, 256, 1, 128, 0, "bf16", _EPOCH),
    Job("evaluation", 5, 10, 10, 100, 128, 1000, "fp32", _EVALUATION),
]
SMOKE_SIZES = [
    Job("expert", 1, 16, 8, 1, 8, 0, "bf16"),
    Job("evaluation", 2, 4, 4, 4, 8, 20),
]
TRAINING_FLOP = 3  # in F, an image and step
# What weights may be apart in after an epoch, as a part of the way they went. PyTorch's own two
# layouts come to 1e-2 in float32, a wrong step to 1.
ALLOWED = {"fp32": 1e-1, "bf16": 3e-1}
ACCURACY = 0.01


def test_training(size: Job, benchmark: Any, report: Report) -> None:
    job, data, agreement = size, size.data(), {}
    ours = ("ours",) if job.precision in PRECISIONS else ()
    precision = _check_precision(job) if ours else None

    def judge(results: Results) -> None:
        naive = results[NAIVE][0]
        for name, (found,) in results.items():
            agreement[name] = _check_agreement(name, job, found, naive)

    compiler = contest.compiler(report.smoke)
    fields = job._asdict()
    contenders = {
        NAIVE: Worker(prepare, DEFAULT, name="naive", **fields),
        "naive tuned": Worker(prepare, TUNED, name="naive", **fields),
    }
    if job.kind == "expert":
        contenders["compiled"] = Worker(
            prepare, TUNED, name="compiled", compiler=compiler, **fields
        )
    contenders |= {name: Worker(prepare, DEFAULT, name=name, **fields) for name in ours}
    convolutions = job.batch, job.width, job.precision
    held = contest.hold(benchmark, contenders, judge, convolutions, smoke=report.smoke)

    trained, tested = (job.networks * n for n in (job.epochs * job.images, job.tested))
    counts = ((trained, floor.TRAINING), (tested, floor.TESTING))
    least = sum(n / job.batch * floor.total(held.best, kinds) for n, kinds in counts)
    work = (TRAINING_FLOP * trained + tested) * forward_flop(job.width) / 1e9
    for name in contenders:
        columns = held.columns(name, least)
        row = {"contender": name, **fields, "memory": 0 if name in ours else None, **columns}
        if name in held.timed:
            row["gflops_at_3F"] = work / columns["median_s"]
            row["agreement"] = agreement[name]
        if name in ours:
            row["precision_check"] = precision
        row |= {"source": data.source, "convolutions_ms": floor.milliseconds(held.best)}
        report.add("training", **row)
        benchmark.extra_info[name] = row


def _check_precision(job: Job) -> dict[str, float]:
    """The precision rule on five networks of this kind and width, too small a job to flip a ReLU.

    In float64 equal to plain PyTorch to 1e-9 of the way the weights went; in the job's precision no
    farther from that than twice plain PyTorch is in the layout ours computes in, by the median
    network. Far is the distance in float32, 1 - cosine of the ways in bf16.
    """
    small = job._replace(networks=5, images=4, batch=3, epochs=2, tested=0)
    double, data = small._replace(precision="fp32"), small.data()
    truth = train_naive(double, data, torch.float64)
    far = {"fp32": _apart, "bf16": _angles}[job.precision]
    found = {
        "float64": float(_apart(small, train_ours(double, data, torch.float64), truth).max()),
        "error": float(far(small, train_ours(small, data), truth).median()),
        "torch_error": float(
            far(small, train_naive(small, data, channels_last=True), truth).median()
        ),
    }
    assert found["float64"] <= EXACT, f"{small}: {found}"
    assert found["error"] <= 2 * found["torch_error"], f"{small}: {found}"
    return found


def _check_agreement(name: str, job: Job, found: Tensor, naive: Tensor) -> float:
    """The same at the figure's own size: weights, or an evaluation's accuracies."""
    if job.kind == "evaluation":
        apart, allowed = float((found - naive).abs().max()), ACCURACY
    else:
        apart, allowed = float(_apart(job, found, naive).max()), ALLOWED[job.precision]
    assert apart <= allowed, f"{name} is {apart} from naive at {job}, allowed {allowed}"
    return apart


def _apart(job: Job, ours: Tensor, naive: Tensor) -> Tensor:
    """Each network's distance of weights [S], in the way the second's went."""
    way = (naive.double() - jobs.starts(job)).norm(dim=1)
    return (ours.double() - naive.double()).norm(dim=1) / way


def _angles(job: Job, ours: Tensor, naive: Tensor) -> Tensor:
    """1 - cosine of the ways that each network's weights went [S]."""
    ways = zip(ours.double(), naive.double(), jobs.starts(job).double(), strict=True)
    return torch.tensor([one_minus_cosine(a - start, b - start) for a, b, start in ways])
