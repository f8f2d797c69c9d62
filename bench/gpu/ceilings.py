"""What the device can do at most: copying, and multiplying matrices in each precision."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch

from bench.gpu.device import DEVICE, PRECISIONS, SMOKE, timed
from bench.gpu.results import Row

SIDE = 128 if SMOKE else 8192
COPIED = 2**16 if SMOKE else 2**30  # bytes, far more than a cache holds
SECONDS = 0.01 if SMOKE else 0.3


def measure() -> Iterator[Row]:
    """The copy's bytes a second, read and written; FLOP/s of square matrices by precision."""
    yield {"table": "ceilings", "what": "copy", "gb_a_s": 2 * COPIED / _copy() / 1e9}
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        a, b = (torch.randn(SIDE, SIDE, device=DEVICE).to(dtype) for _ in range(2))
        out = a @ b
        # the best, not the median: a ceiling
        seconds = min(timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), SECONDS, 5))
        yield {
            "table": "ceilings",
            "what": f"matrices of {SIDE}, {precision}",
            "precision": precision,
            "tflops": 2 * SIDE**3 / seconds / 1e12,
        }


def _copy() -> float:
    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8, device=DEVICE)
    place = torch.empty_like(source)
    place.copy_(source)
    return median(timed(lambda: place.copy_(source), SECONDS))


def by_precision(rows: list[Row]) -> dict[str, float]:
    """FLOP/s by precision, out of rows; "copy" is bytes a second."""
    found = [row for row in rows if row.get("table") == "ceilings"]
    peaks = {row["precision"]: row["tflops"] * 1e12 for row in found if "precision" in row}
    return {**peaks, **{row["what"]: row["gb_a_s"] * 1e9 for row in found if "gb_a_s" in row}}
