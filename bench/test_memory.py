"""Peak memory of a matching step against the number of steps, with the default ``memory=``."""

from __future__ import annotations

from itertools import pairwise

from bench.problem import Size, parameters, prepare
from bench.report import Report
from bench.worker import DEFAULT, Worker

BYTES = 4  # of a float32
VECTORS = 3  # what a step may add, in vectors of P: theta_t, g_t and one to spare
SIZES = [(Size(10, 10, 128), Size(50, 10, 128), Size(200, 10, 128))]
SMOKE_SIZES = [(Size(10, 1, 128), Size(30, 1, 128))]


def test_memory_grows_by_weights_alone(size: tuple[Size, ...], report: Report) -> None:
    vector = BYTES * parameters(size[0].width)
    peaks = [_peak(one) for one in size]
    growths = [
        (peak - before) / (one.steps - shorter.steps) / vector
        for (shorter, before), (one, peak) in pairwise(zip(size, peaks, strict=True))
    ]
    assert max(growths) <= VECTORS, f"a step adds {growths} vectors of 4P bytes, allowed {VECTORS}"
    for one, peak, growth in zip(size, peaks, [None, *growths], strict=True):
        report.add(
            "memory",
            contender="exact",
            **one._asdict(),
            memory=0,
            peak_MB=peak / 1e6,
            vectors_a_step=growth,
            vectors_allowed=VECTORS,
            vector_MB=vector / 1e6,
        )


def _peak(size: Size) -> int:
    with Worker(prepare, DEFAULT, name="exact", **size._asdict()) as worker:
        worker.prepare()
        return worker.run().peak
