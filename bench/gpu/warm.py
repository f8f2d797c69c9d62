"""Kernels compiled beforehand by many processes: Triton keeps them, the sections load them.

Here the processes tune into a folder that is thrown away, for they disturb one another; what the
sections then run is tuned by themselves, without waiting for a compiler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.gpu import processes
from bench.gpu.contenders import contender, on_device
from bench.gpu.device import DEVICE, ON_GPU, PRECISIONS
from bench.gpu.matching import WORKS
from bench.gpu.operations import LAYERS, SIZES, calls
from bench.gpu.results import Row
from bench.problem import make_problem
from fastmtt import ops


def warm(seconds: float) -> Iterator[Row]:
    """Compile for the sections ops and match, in as many processes as there are cores.

    Yields:
        One row: how long it took, and what was not compiled in time.
    """
    if not ON_GPU:
        return
    tasks: list[tuple[Any, dict[str, Any]]] = [
        (_iterations, {"precision": precision}) for precision in PRECISIONS[1:]
    ]
    names = {layer: list(calls(layer, 1, 2)) for layer in LAYERS}
    for layer, precision in product(LAYERS, PRECISIONS):
        tasks += [
            (_op, {"layer": layer, "precision": precision, "name": name}) for name in names[layer]
        ]
    begin, running, done = time.monotonic(), [], 0
    with TemporaryDirectory() as folder:
        environment = {"FASTMTT_CACHE": folder, "OMP_NUM_THREADS": "1"}
        while (tasks or running) and time.monotonic() < begin + seconds:
            while tasks and len(running) < (os.cpu_count() or 1):
                maker, arguments = tasks.pop(0)
                running.append(processes.start(maker, environment, **arguments))
            ended = [process for process in running if process.poll() is not None]
            done += len(ended)
            running = [process for process in running if process not in ended]
            time.sleep(0.05)
        late = len(tasks) + len(running)
        for process in running:
            processes.stop(process)
    yield {"table": "compiling", "tasks": done, "s": time.monotonic() - begin, "not in time": late}


def _op(layer: str, precision: str, name: str) -> Iterator[Row]:
    """Run an op of the blocks at all sizes measured; what fails here fails there with a row."""
    for students, images in SIZES:
        with suppress(RuntimeError):
            calls(layer, students, images)[name].map(lambda t: t.float()).run("triton", precision)
            torch.cuda.synchronize()
    yield {}


def _iterations(precision: str) -> Iterator[Row]:
    """Run a step of a matching iteration at all sizes measured: head, flat vectors, layout."""
    for work in WORKS:
        size = work.size(precision)._replace(steps=1)
        with suppress(RuntimeError), ops.use(None):
            contender("ours, fused, no graph", on_device(make_problem(size)), work.segments)()
            torch.cuda.synchronize(DEVICE)
    yield {}
