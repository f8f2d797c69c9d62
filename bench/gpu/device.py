"""The device that is measured, its facts and its clock."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import machine
from fastmtt import info

SMOKE = os.environ.get("FASTMTT_BENCH") == "smoke"  # tiny sizes, on a CPU too: a test, no figure
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = DEVICE == "cuda"
# What float32 convolutions multiply; torch's default on a GPU is tf32.
PRECISIONS = ("fp32", "tf32", "bf16") if ON_GPU else ("fp32", "bf16")
FASTEST = "tf32" if ON_GPU else "fp32"


def facts() -> dict[str, Any]:
    """Device, driver and versions, beside those of the machine it sits in."""
    versions = dict(info.versions())
    return {
        "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "triton": versions["triton"],
        "size": "smoke" if SMOKE else "full",
        **machine.facts(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def synchronize() -> None:
    """Wait for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], seconds: float, least: int = 3) -> list[float]:
    """Seconds of every run, until so many are spent and at least so many runs done.

    Between events on a GPU, so that a run is not charged for what the host does meanwhile.
    """
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        synchronize()
        start = time.perf_counter()
        if ON_GPU:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]) / 1e3)
        else:
            run()
            times.append(time.perf_counter() - start)
    return times


def seconds_each(runs: list[Callable[[], Any]], seconds: float) -> tuple[float, str]:
    """Median seconds of one of several like runs, and how it was measured.

    On a GPU they are recorded one after another as a graph, which leaves the host's launches out;
    what cannot be recorded is called. Each must have run before.
    """
    if not ON_GPU:
        return median(timed(lambda: [run() for run in runs], seconds)) / len(runs), "called"
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for run in runs:
                run()
    except RuntimeError:
        torch.cuda.synchronize()
        return median(timed(lambda: [run() for run in runs], seconds)) / len(runs), "called"
    graph.replay()
    return median(timed(graph.replay, seconds)) / len(runs), "graph"


def reset_peak() -> None:
    """Let the peak of memory begin here, with nothing kept that is free."""
    if ON_GPU:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float | None:
    """Megabytes of the device that tensors took at most since :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated() / 1e6 if ON_GPU else None


def relative_rms(found: Tensor, truth: Tensor) -> float:
    """Root mean square of the error over that of the truth; infinite where a number is none."""
    error = (found.double() - truth.double()).square().mean().sqrt()
    ratio = float(error / truth.double().square().mean().sqrt())
    return ratio if ratio == ratio else float("inf")


def spread(times: list[float]) -> dict[str, float]:
    """Median and 20 % and 80 % quantiles in milliseconds, as columns."""
    low, high = (torch.tensor(times).quantile(torch.tensor([0.2, 0.8])) * 1e3).tolist()
    return {"ms": median(times) * 1e3, "p20_ms": low, "p80_ms": high, "runs": len(times)}


def gaps(marks: list[float]) -> list[float]:
    """Differences of successive times."""
    return [b - a for a, b in pairwise(marks)]
