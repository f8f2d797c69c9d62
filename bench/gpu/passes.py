"""The CUDA block's norm passes alone, within their ops: bandwidth beside a copy's, and launches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from statistics import median

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.device import SMOKE
from bench.gpu.operations import COLD, LAYERS, WIDTH, Call, calls
from bench.gpu.results import Row
from fastmtt.ops import backends

# (students, images of each); the last is more than a cache holds at every layer
SIZES = [(1, 2)] if SMOKE else [(1, 100), (8, 10), (1, 1000)]
RUNS = 2 if SMOKE else 10
NAME = "cuda::Norm"  # of the passes' kernels


def measure(layers: list[str], peaks: dict[str, float]) -> Iterator[Row]:
    """A row for each op and size; ``peaks`` has "copy" in bytes a second."""
    if reason := backends.missing("cuda", "conv_block"):
        yield {"table": "passes", "failed": reason}
        return
    for layer in layers:
        side, _ = LAYERS[layer]
        for students, images in SIZES:
            row = {"table": "passes", "layer": layer, "S": students, "images": images}
            try:
                named = {
                    name: call.map(lambda t: t.float())
                    for name, call in calls(layer, students, images).items()
                }
            except torch.OutOfMemoryError as error:
                yield {**row, "failed": str(error).splitlines()[0][:200]}
                continue
            for name, call in named.items():
                moved = moved_bytes(call, students * images, side)
                yield {**row, "op": name, **_timed(call, moved, peaks["copy"])}


def moved_bytes(call: Call, images: int, side: int) -> int:
    """What the op's pass must read and write: planes and pooled planes of so many images."""
    plane, pooled = (4 * images * s * s * WIDTH for s in (side, side // 2))
    if call.op == "conv_block":
        planes = 2  # z, xhat
    elif call.op == "conv_block_backward":
        planes = 2  # xhat, gz
    elif call.op == "conv_block_jvp":
        _, a_dot, *_, xhat, _ = call.arguments
        # z or xhat, z_dot, which a moving input makes a sum of two, xhat_dot; xhat if not given
        planes = 3 + (a_dot is not None) + (xhat is None)
    else:
        a_dot, (need_a_dot, _, need_a) = call.arguments[3], call.arguments[-1]
        planes = 3 + (need_a_dot or need_a or a_dot is not None)  # xhat, xhat_dot, gz_dot; gz
    return planes * plane + (2 if call.op.endswith("jvp") else 1) * pooled


def _timed(call: Call, moved: int, copy: float) -> Row:
    """The pass on inputs that are not in the cache, by the device's own clock."""
    inputs = [call.map(torch.clone) for _ in range(min(1 + COLD // moved, 8))]
    for each in inputs:
        each.run("cuda", "tf32")
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for each in islice(cycle(inputs), RUNS):
            each.run("cuda", "tf32")
        torch.cuda.synchronize()
    launched = [e for e in seen.events() if e.device_type == DeviceType.CUDA]
    times = [e.time_range.elapsed_us() for e in launched if NAME in e.name]
    if len(times) != RUNS:
        return {"failed": f"{len(times)} launches of the pass in {RUNS} calls"}
    rate = moved / (median(times) * 1e-6)
    return {
        "us": median(times),
        "gb_a_s": rate / 1e9,
        "of_copy": rate / copy,
        "launches": len(launched) / RUNS,
    }
