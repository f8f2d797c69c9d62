"""What each family of CUDA kernels gains a matching iteration, beside Triton's in its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from bench.gate import one_minus_cosine
from bench.gpu.contenders import OURS, on_device, ours
from bench.gpu.device import FASTEST, ON_GPU, synchronize
from bench.gpu.matching import APART
from bench.gpu.results import Row
from bench.naive import Gradients
from bench.problem import Problem, Size, make_problem
from fastmtt import DSA
from fastmtt.ops import backends

STEPS, WIDTH = 20, 128
BATCHES = (10, 100)
ROUNDS = 7
FAMILIES = {
    "flat vectors": ("sgd_update", "dot", "sqdist"),
    "head": tuple(f"linear_xent{suffix}" for suffix in ("", "_backward", "_jvp", "_backward_jvp")),
    "DSA": ("dsa", "dsa_transpose"),
}
HOPPER = ("hopper", "hopper_weight_gradient")  # modules whose plans the tuner is offered


def measure() -> Iterator[Row]:
    """A row for each family and batch; none without a GPU."""
    for batch in BATCHES if ON_GPU else ():
        problem = on_device(make_problem(Size(STEPS, batch, WIDTH, FASTEST)))
        changes = {family: (_by_cuda(ops), nullcontext()) for family, ops in FAMILIES.items()}
        if backends.hopper():
            changes["Hopper's"] = (nullcontext(), _without_hopper())
        for family, (own, other) in changes.items():
            found = _compared(_recorded(problem, own), _recorded(problem, other))
            yield {"table": "gains", "batch": batch, "family": family, **found}


def _recorded(problem: Problem, change: AbstractContextManager[Any]) -> Callable[[], Gradients]:
    """An iteration recorded within ``change``."""
    run = ours(next(iter(OURS)), problem, augment=DSA())
    with change:
        for _ in range(3):  # tuned, recorded, launched
            run()
    return run


def _by_cuda(ops: Sequence[str]) -> AbstractContextManager[Any]:
    serving = backends._serving

    def served(op: str, args: tuple[Any, ...]) -> str:
        return "cuda" if op in ops else serving(op, args)

    return patch.object(backends, "_serving", served)


@contextmanager
def _without_hopper() -> Iterator[None]:
    with ExitStack() as stack:
        for name in HOPPER:
            stack.enter_context(patch(f"fastmtt.kernels.{name}.plans", lambda *_, **__: []))
        yield


def _compared(run: Callable[[], Gradients], other: Callable[[], Gradients]) -> Row:
    """Milliseconds of the two, in turns, if they agree."""
    images = []
    for each in (run, other):
        torch.manual_seed(0)  # of the augmentation
        images.append(each().images.clone())
    apart = one_minus_cosine(*images)
    if not apart <= APART:
        return {"failed": f"disagrees: 1 - cosine {apart:.2g}, allowed {APART}"}
    times: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS):
        for each, kept in zip((run, other), times, strict=True):
            synchronize()
            begin = time.perf_counter()
            each()
            synchronize()
            kept.append(time.perf_counter() - begin)
    with_ms, without_ms = (1e3 * median(kept) for kept in times)
    torch.cuda.empty_cache()
    return {"ms": with_ms, "ms_of_triton": without_ms, "gain": without_ms / with_ms, "apart": apart}
