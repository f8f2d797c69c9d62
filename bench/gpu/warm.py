"""Kernels compiled beforehand by many processes: Triton keeps them, the sections load them.

Here the processes tune into a folder that is thrown away, for they disturb one another; what the
sections then run is tuned by themselves, without waiting for a compiler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import product
from tempfile import TemporaryDirectory

import torch

from bench.gpu import processes
from bench.gpu.contenders import contender, on_device
from bench.gpu.device import DEVICE, ON_GPU, PRECISIONS
from bench.gpu.matching import WORKS
from bench.gpu.operations import LAYERS, SIZES, calls
from bench.gpu.results import Row
from bench.problem import make_problem


def warm(seconds: float, precisions: Sequence[str] = PRECISIONS) -> Iterator[Row]:
    """Compile for the sections ops and match, in as many processes as there are cores.

    Args:
        seconds: after which they are stopped.
        precisions: of :data:`PRECISIONS`.

    Yields:
        One row: how long it took, and how many processes were not ready in time.
    """
    if not ON_GPU:
        return
    ops_of = {layer: list(calls(layer, 1, 2)) for layer in LAYERS}
    todo = [(at, how, op) for at, how in product(LAYERS, precisions) for op in ops_of[at]]
    count = max(1, (os.cpu_count() or 1) - 2)
    each = -(-len(todo) // count)  # neighbours share kernels: they stay together
    begin = time.monotonic()
    with TemporaryDirectory() as folder:
        environment = {"FASTMTT_CACHE": folder, "OMP_NUM_THREADS": "1"}
        running = [
            processes.start(_iterations, environment, precision=precision)
            for precision in precisions
            if precision != "fp32"
        ]
        running += [
            processes.start(_ops, environment, todo=todo[first : first + each])
            for first in range(0, len(todo), each)
        ]
        while time.monotonic() < begin + seconds and any(p.poll() is None for p in running):
            time.sleep(0.05)
        late = [process for process in running if process.poll() is None]
        for process in late:
            processes.stop(process)
    yield {
        "table": "compiling",
        "processes": len(running),
        "s": time.monotonic() - begin,
        "not in time": len(late),
    }


def _ops(todo: list[tuple[str, str, str]]) -> Iterator[Row]:
    """Run (layer, precision, op)s; what fails here fails in its section with a row.

    500 images compile to what 100 do, and in float64 would not fit many times over.
    """
    for layer, precision, op in todo:
        for students, images in [size for size in SIZES if size[0] * size[1] <= 100]:
            with suppress(RuntimeError):
                call = calls(layer, students, images)[op].map(lambda t: t.float())
                call.run("triton", precision)
                torch.cuda.synchronize()
    yield {}


def _iterations(precision: str) -> Iterator[Row]:
    """Run a step of a matching iteration at all sizes measured: head, flat vectors, layout."""
    for work in WORKS:
        size = work.size(precision)._replace(steps=1)
        with suppress(RuntimeError):
            contender("ours, fused, no graph", on_device(make_problem(size)), work.segments)()
            torch.cuda.synchronize(DEVICE)
    yield {}
