"""An expert's epoch and an evaluation, against plain eager PyTorch doing the same."""

from __future__ import annotations

from typing import Any

import torch

from bench import jobs, machine, memory
from bench.clock import time_in_turn
from bench.jobs import Job, contender, train_naive, train_ours
from bench.problem import forward_flop
from bench.report import Report, quantiles, times_faster
from fastmtt.data import DataSet

# A slice of an expert's epoch (one of 25 parts); a tenth of an evaluation at 1 image a class.
SIZES = [Job("expert", 1, 2048, 256, 1, 128, 0), Job("evaluation", 5, 10, 10, 100, 128, 1000)]
SMOKE_SIZES = [Job("expert", 1, 16, 8, 1, 8, 0), Job("evaluation", 2, 4, 4, 4, 8, 20)]
EXACT = 1e-9
ACCURACY = 0.01
TRAINING_FLOP = 3  # in F, an image and step
ROUNDS = 5


def test_training(size: Job, benchmark: Any, report: Report) -> None:
    job, data = size, size.data()
    precision = _check_precision(job)
    apart = _check_agreement(job, data)

    runs = {name: contender(name, job, data) for name in jobs.CONTENDERS}
    rates = machine.convolution_rates(job.batch, job.width, 0.05 if report.smoke else 1.0)
    timed = time_in_turn(benchmark, runs, 2 if report.smoke else ROUNDS)

    steps = TRAINING_FLOP * job.epochs * job.images
    work = job.networks * (steps + job.tested) * forward_flop(job.width) / 1e9
    for name, clock in timed.items():
        times = quantiles(clock.seconds)
        row = {
            "contender": name,
            **job._asdict(),
            "source": data.source,
            **times,
            "naive_over_this": times_faster(timed["naive"].seconds, clock.seconds),
            "peak_MB": memory.peak_bytes(jobs.prepare, name=name, **job._asdict()) / 1e6,
            "gflops_at_3F": work / times["median_s"],
            "convolution_gflops": rates["all"],
            "of_convolution": work / times["median_s"] / rates["all"],
            "system_share": clock.system_share,
            "convolutions": rates,
        }
        if name == "ours":
            row["agreement"] = {**precision, "full_size_float32": apart}
        report.add("training", **row)
        benchmark.extra_info[name] = row


def _check_precision(job: Job) -> dict[str, float]:
    """The precision rule on five networks of this kind and width, too small a job to flip a ReLU.

    In float64 equal to plain PyTorch to 1e-9 of the way the weights went; in float32 no farther
    from that than twice plain PyTorch is in the layout ours computes in, by the median network.
    """
    small = job._replace(networks=5, images=4, batch=3, epochs=2, tested=0)
    data = small.data()
    truth = train_naive(small, data, torch.float64)
    double = float(_apart(small, train_ours(small, data, torch.float64), truth).max())
    ours = float(_apart(small, train_ours(small, data), truth).median())
    torchs = float(_apart(small, train_naive(small, data, channels_last=True), truth).median())
    found = {"float64": double, "float32": ours, "torch_float32": torchs}
    assert double <= EXACT and ours <= 2 * torchs, f"{small}: {found}"
    return found


def _check_agreement(job: Job, data: DataSet) -> float:
    """The same accuracies at the figure's own size; how far the weights are apart is told.

    It is not judged: over many steps a few ReLUs flip in any float32 run, and PyTorch's own two
    layouts end 1e-2 of the way from float64.
    """
    if job.tested:
        ours, naive = (contender(name, job, data)() for name in ("ours", "naive"))
        assert torch.allclose(ours, naive, rtol=0, atol=ACCURACY), f"{job}: {ours} and {naive}"
    return float(_apart(job, train_ours(job, data), train_naive(job, data)).max())


def _apart(job: Job, ours: torch.Tensor, naive: torch.Tensor) -> torch.Tensor:
    """Each network's distance of weights [S], in the way the second's went."""
    way = (naive.double() - jobs.starts(job)).norm(dim=1)
    return (ours.double() - naive.double()).norm(dim=1) / way
