"""A matching iteration by every contender: judged on small problems and at its size, then timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from bench.gate import JUDGES, one_minus_cosine
from bench.gpu.contenders import JUDGE, JUDGE_TESLA, OURS, SLOW_STARTERS, contender, on_device
from bench.gpu.device import DEVICE, FASTEST, SMOKE, peak_mb, reset_peak, spread, synchronize
from bench.gpu.results import Row
from bench.naive import Gradients
from bench.problem import Size, forward_flop, make_problem

WIDTH = 8 if SMOKE else 128
SEEDS = 2 if SMOKE else 5
SECONDS = 0.05 if SMOKE else 1.5  # of measuring a size
LONG = 4.0  # seconds of a step, of which one run is enough
STEP_FLOP = 9  # in F; the yardstick for every contender
# At their own size results in low precision drift apart over many steps, in direction too; the
# gradient of another formula lies at 1. In 1 - cosine of the images' gradient, and in the loss.
APART, LOSS_APART = 0.05, 0.05
ROUNDING = 1e-6  # an error below is none: torch's own happens to be zero now and then


class Work(NamedTuple):
    """Batch, steps and segments at once of an iteration."""

    batch: int
    steps: int
    segments: int

    def size(self, precision: str) -> Size:
        """Without the segments."""
        return Size(self.steps, self.batch, WIDTH, precision)


WORKS = [Work(10, 50, 1), Work(10, 50, 8), Work(100, 80, 1), Work(500, 80, 1)]
if SMOKE:
    WORKS = [Work(2, 3, 1), Work(2, 3, 2)]


def measure(name: str, precision: str, folder: str, peak: float) -> Iterator[Row]:
    """A row for each size.

    Args:
        name: of a contender.
        precision: "fp32", "tf32" or "bf16".
        folder: holds each size's gradients, which the first exact contender leaves there.
        peak: FLOP/s of matrices in that precision.
    """
    row: Row = {"contender": name, "precision": precision}
    if name in SLOW_STARTERS:  # compiles for every shape: it is judged at the sizes alone
        judged: Row = {}
    else:
        judged = judge(name, precision)
        allowed = 2 * judged["torch_error"] + ROUNDING
        if not judged["error"] <= allowed:
            yield {**row, **judged, "failed": f"less precise than twice PyTorch: {allowed:.2g}"}
            return
    works = [work for work in WORKS if name in OURS or work.segments == 1]
    if name in SLOW_STARTERS:
        works = works[::-1] if SMOKE else [Work(100, 80, 1), Work(10, 50, 1)]
    for work in works:
        line = {**row, **work._asdict(), **judged}
        try:
            yield {**line, **_one(name, work, precision, Path(folder), peak)}
        except torch.OutOfMemoryError as error:
            words = str(error).partition("GPU 0 has a total")[0].strip()
            yield {**line, "failed": f"out of memory: {words}", "peak_mb": peak_mb()}
        except ArithmeticError as error:
            yield {**line, "failed": str(error)}


def judge(name: str, precision: str) -> Row:
    """Errors against float64, and PyTorch's own in the same precision, on small problems.

    Medians over the seeds; of the images' gradient the relative error, in bf16 1 - cosine. PyTorch
    is judged in both layouts, as oneDNN's and cuDNN's sums differ between them, the worse counts.
    """
    truth_by = JUDGE_TESLA if name.startswith("tesla") else JUDGES.get(name, JUDGE)
    errors = []
    for seed in range(SEEDS):
        problem = on_device(make_problem(Size(2, 2, WIDTH, precision), seed))
        truth = contender(truth_by, problem.to(torch.float64))()
        runs = (
            contender(name, problem),
            contender(truth_by, problem),
            contender(truth_by, problem, channels_last=True),
        )
        errors.append([_error(run(), truth, precision) for run in runs])
    error, *torch_errors = (median(column) for column in zip(*errors, strict=True))
    return {"error": error, "torch_error": max(torch_errors)}


def _error(found: Gradients, truth: Gradients, precision: str) -> float:
    if precision == "bf16":
        return one_minus_cosine(found.images, truth.images)
    pairs = [(a.double(), b.double()) for a, b in zip(found, truth, strict=True)]
    worst = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return worst if worst == worst else float("inf")


def _one(name: str, work: Work, precision: str, folder: Path, peak: float) -> Row:
    problem = on_device(make_problem(work.size(precision)))
    reset_peak()
    run = contender(name, problem, work.segments)
    begin = time.perf_counter()
    if name not in OURS and name not in SLOW_STARTERS:  # what a first call loads
        contender(name, on_device(make_problem(work.size(precision)._replace(steps=1))))()
    found = run()
    synchronize()
    first = time.perf_counter() - begin
    agreement = _agreement(name, work, precision, folder, found)
    for _ in range(2 if name in OURS else 0):  # the graph's recording and its first launch
        run()
    times = _times(run)
    seconds = median(times)
    flop = STEP_FLOP * forward_flop(WIDTH) * work.batch * work.steps * work.segments
    return {
        **spread(times),
        "ms_a_segment": seconds / work.segments * 1e3,
        "tflops_at_9F": flop / seconds / 1e12,
        "of_peak": flop / seconds / peak,
        "peak_mb": _peak_of(name),
        "first_call_s": first,
        **agreement,
    }


def _times(run: Callable[[], Gradients]) -> list[float]:
    """Wall clock of whole iterations, the host's part included, as a distillation waits for it."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
        if times[-1] > LONG:
            break
    return times


def _peak_of(name: str) -> float | None:
    if name == "jax":
        from bench.gpu import in_jax

        return in_jax.peak_mb()
    return peak_mb()


def _agreement(name: str, work: Work, precision: str, folder: Path, found: Gradients) -> Row:
    """How far from the first exact contender's result at this size.

    Raises:
        ArithmeticError: another gradient than rounding explains.
    """
    size = work.size(precision)
    if name.startswith("tesla"):
        return {"apart": None}  # it is another gradient
    file = folder / f"{size}.safetensors"
    if not file.exists():
        kept = {k: v.detach().clone().contiguous() for k, v in found._asdict().items()}
        save_file(kept, file)
        return {"apart": 0.0, "judged_by": name}
    truth = Gradients(**load_file(file, device=DEVICE))
    apart = one_minus_cosine(found.images, truth.images)
    loss = abs(float(found.loss / truth.loss) - 1)
    if not (apart <= APART and loss <= LOSS_APART):
        raise ArithmeticError(
            f"disagrees at this size: 1 - cosine {apart:.2g}, allowed {APART}; loss off by "
            f"{loss:.2g}, allowed {LOSS_APART}"
        )
    return {"apart": apart}


def schedule() -> Iterator[tuple[str, str, float]]:
    """Contenders with their precision and at most so many seconds, the most wanted first."""
    first, second, *ours = OURS
    for name in (JUDGE, first, "tesla, two passes", "torch.func", *ours, "jax"):
        yield name, FASTEST, 60.0
    for name in (JUDGE, first):
        yield name, "bf16", 60.0
    yield second, FASTEST, 60.0
    for name in (*ours, "torch.func", "tesla, two passes", second):
        yield name, "bf16", 60.0
    yield "torch.func, compiled", FASTEST, 120.0
    yield "jax", "bf16", 60.0
