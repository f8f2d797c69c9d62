"""Where an iteration's time goes on a GPU: its kernels and launches, a step of either sweep."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.gpu.contenders import OURS, contender, on_device
from bench.gpu.device import FASTEST, ON_GPU, synchronize
from bench.gpu.results import Row
from bench.problem import Size, make_problem

STEPS, WIDTH = 10, 128
BATCHES = (10, 100, 500)
MOST = 16  # kernels told of
SWEEPS = ("forward", "adjoint")


def measure() -> Iterator[Row]:
    """Rows of launches and of kernels for each batch; none without a GPU."""
    for batch in BATCHES if ON_GPU else ():
        events = _profile(batch)
        yield from _launches(events, batch)
        yield from _kernels(events, batch)


def _profile(batch: int) -> list[dict[str, Any]]:
    """The kernels and copies of one iteration, in the order in which they ran."""
    from torch.profiler import ProfilerActivity, profile

    name = next(iter(OURS))
    run = contender(name, on_device(make_problem(Size(STEPS, batch, WIDTH, FASTEST))))
    for _ in range(3):  # tuned, recorded, launched
        run()
    synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        synchronize()
    with TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        found.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    return sorted((e for e in events if e.get("cat") in kinds), key=lambda e: e["ts"])


def _launches(events: list[dict[str, Any]], batch: int) -> Iterator[Row]:
    """By what the host launched: a graph is one launch of many kernels."""
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        groups[event["args"]["correlation"]].append(event)
    sweeps = sorted(groups.values(), key=len)[-len(SWEEPS) :]
    for sweep, group in zip(SWEEPS, sorted(sweeps, key=lambda g: g[0]["ts"]), strict=False):
        yield {
            "table": "launches",
            "batch": batch,
            "sweep": sweep,
            "launches_a_step": len(group) / STEPS,
            "busy_us_a_step": sum(e["dur"] for e in group) / STEPS,
        }


def _kernels(events: list[dict[str, Any]], batch: int) -> Iterator[Row]:
    """The kernels that take longest, by name."""
    durations: dict[str, list[float]] = defaultdict(list)
    for event in events:
        durations[event["name"][:60]].append(event["dur"])
    for name, each in sorted(durations.items(), key=lambda pair: -sum(pair[1]))[:MOST]:
        row = {"table": "kernels", "batch": batch, "kernel": name}
        yield {**row, "us_a_step": sum(each) / STEPS, "launches_a_step": len(each) / STEPS}
