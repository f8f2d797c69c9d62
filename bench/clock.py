"""Contenders timed in turn (A B C, A B C, ...) within one run, carried by pytest-benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from bench.worker import Measure, Worker


class Timed:
    """What a contender's runs came to."""

    def __init__(self, runs: Sequence[Measure]) -> None:
        self.runs = runs

    @property
    def seconds(self) -> list[float]:
        """Wall clock of each round."""
        return [run.seconds for run in self.runs]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return median(self.seconds)

    @property
    def peak(self) -> int:
        """Bytes of memory at most; see :class:`bench.worker.Measure`."""
        return self.runs[-1].peak

    def over(self, other: Timed) -> float:
        """How many times the other's time this took: the median over rounds, run in turn."""
        return median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def columns(self) -> dict[str, float]:
        """Times, their spread and memory, as columns of a row.

        ``system_share`` is the kernel's part of the processor time. A large one is memory that
        malloc maps and the kernel zeroes, page by page, at every pass.
        """
        low, high = np.quantile(self.seconds, [0.2, 0.8]).tolist()
        user, system = (sum(run[i] for run in self.runs) for i in (1, 2))
        return {
            "median_s": self.median,
            "p20_s": low,
            "p80_s": high,
            "rounds": len(self.runs),
            "peak_MB": self.peak / 1e6,
            "system_share": system / max(user + system, 1e-9),
        }


def rounds_within(seconds: float, first: Sequence[Measure]) -> int:
    """How many rounds fit, by each contender's first run; 5 at least, 15 at most."""
    return int(min(max(seconds / sum(run.seconds for run in first), 5), 15))


def time_in_turn(benchmark: Any, workers: Mapping[str, Worker], rounds: int) -> dict[str, Timed]:
    """Time the contenders in turn, ``rounds`` times; each must have run once before.

    They time themselves. pytest-benchmark times the last one as well, from outside, and has the
    others run in its set-up, so that what disturbs the machine disturbs all alike.

    Raises:
        RuntimeError: pytest-benchmark was told not to measure.
    """
    if not benchmark.enabled:
        raise RuntimeError("pytest-benchmark is switched off (xdist? --benchmark-disable?)")
    runs: dict[str, list[Measure]] = {name: [] for name in workers}
    *others, last = workers

    def run(names: Sequence[str]) -> None:
        for name in names:
            runs[name].append(workers[name].run())

    benchmark.pedantic(partial(run, [last]), setup=partial(run, others), rounds=rounds)
    return {name: Timed(measures) for name, measures in runs.items()}
