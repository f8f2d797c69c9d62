"""The machine as a row of facts, and its rate of convolution measured in the same run."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmtt
from fastmtt import info
from fastmtt.ops import backends

ROOT = Path(__file__).parent.parent
_BUT_RESULTS = ":(exclude)bench/results"  # rows written a moment ago are no change of the code
KINDS = ("forward", "input gradient", "weight gradient")


def facts() -> dict[str, Any]:
    """Whatever explains a time: processor, threads, versions, commit, load, allocator."""
    processor, versions = dict(info.processor()), dict(info.versions())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor["processor"] + _family(),
        "instruction_sets": processor["instruction sets"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "malloc": _malloc(),
        "huge_pages": _huge_pages(),
        **{name.lower(): versions[name] for name in ("Python", "torch")},
        "fastmtt": fastmtt.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ".", _BUT_RESULTS)
        ),
    }


def served() -> dict[str, list[str]]:
    """The ops each backend serves, by backend."""
    ops: dict[str, list[str]] = {}
    for row in backends.table():
        ops.setdefault(row.backend, []).append(row.op)
    return ops


@cache
def convolution_rates(batch: int, width: int, seconds: float) -> dict[str, float]:
    """GFLOP/s of PyTorch's own convolutions (oneDNN), channels last, float32, best of many.

    They are the ConvNet's 3x3 convolutions from ``width`` to ``width`` channels, on 16x16 and 8x8
    images: 93 % of its work at width 128.

    Args:
        batch: images at a time.
        width: channels.
        seconds: how long to look for the best time of each.

    Returns:
        The rate of each kind and side, and "all": the whole work over the sum of the best times.
    """
    rates, work, total = {}, 0.0, 0.0
    for side in (16, 8):
        flop = 2 * 9 * width * width * side * side * batch
        for kind in KINDS:
            best = _best_time(_convolution(kind, batch, width, side), seconds)
            rates[f"{kind} {side}x{side}"] = flop / best / 1e9
            work, total = work + flop, total + best
    return {**rates, "all": work / total / 1e9}


def _best_time(run: Callable[[], Any], seconds: float) -> float:
    """The shortest time of ``run`` within ``seconds`` of repetitions, at least three."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _convolution(kind: str, batch: int, width: int, side: int) -> Callable[[], Any]:
    x, g = (_channels_last(batch, width, side, side) for _ in range(2))
    w = _channels_last(width, width, 3, 3)
    if kind == "forward":
        return lambda: torch.conv2d(x, w, padding=1)
    mask = [kind == "input gradient", kind == "weight gradient", False]
    ones = [1, 1]
    return lambda: torch.ops.aten.convolution_backward(
        g, x, w, None, ones, ones, ones, False, [0, 0], 1, mask
    )


def _channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def _family() -> str:
    """Family and model: virtual machines like to leave the processor's name out."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""  # not Linux
    wanted = [line.split(":") for line in lines if line.startswith(("cpu family", "model\t"))][:2]
    return "".join(f", {name.strip()} {value.strip()}" for name, value in wanted)


def _malloc() -> str:
    """What in the environment changes the allocator, which decides much of the naive's time."""
    names = [
        n for n in os.environ if n.startswith("MALLOC_") or n in ("LD_PRELOAD", "GLIBC_TUNABLES")
    ]
    return " ".join(f"{name}={os.environ[name]}" for name in sorted(names)) or "default"


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "not known"
    return text.partition("[")[2].partition("]")[0]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a working copy
    return done.stdout.strip()
