"""Peak memory of a matching step against the number of steps, with the default ``memory=``."""

from __future__ import annotations

from itertools import pairwise

from bench import memory
from bench.problem import Size, parameters
from bench.report import Report

BYTES = 4  # of a float32
VECTORS = 3  # what a step may add, in vectors of P: theta_t, g_t and one to spare
SIZES = [(Size(10, 10, 128), Size(50, 10, 128), Size(200, 10, 128))]
SMOKE_SIZES = [(Size(10, 1, 128), Size(30, 1, 128))]


def test_memory_grows_by_weights_alone(size: tuple[Size, ...], report: Report) -> None:
    vector = BYTES * parameters(size[0].width)
    peaks = [_peak("exact", one) for one in size]
    growths = [_growth(*pair) for pair in pairwise(zip(size, peaks, strict=True))]
    assert max(growths) <= VECTORS * vector, (
        f"a step adds {[round(g / vector, 2) for g in growths]} x 4P bytes, allowed {VECTORS}"
    )
    naive = [_peak("naive", one) for one in size[:2]]
    _add(report, "exact", size, peaks)
    _add(report, "naive", size[:2], naive)


def _peak(name: str, size: Size) -> int:
    return memory.peak_bytes(memory.matching_step, name=name, **size._asdict())


def _growth(before: tuple[Size, int], after: tuple[Size, int]) -> float:
    """Bytes a step."""
    return (after[1] - before[1]) / (after[0].steps - before[0].steps)


def _add(report: Report, name: str, sizes: tuple[Size, ...], peaks: list[int]) -> None:
    vector = BYTES * parameters(sizes[0].width)
    growths: list[float | None] = [None]
    growths += [_growth(*pair) for pair in pairwise(zip(sizes, peaks, strict=True))]
    for size, peak, growth in zip(sizes, peaks, growths, strict=True):
        report.add(
            "memory",
            contender=name,
            **size._asdict(),
            memory=0,
            peak_MB=peak / 1e6,
            growth_MB_a_step=None if growth is None else growth / 1e6,
            growth_in_4P=None if growth is None else growth / vector,
            allowed_in_4P=VECTORS if name == "exact" else None,
        )
