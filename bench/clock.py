"""Contenders timed in turn (A B C, A B C, ...) within one run, carried by pytest-benchmark."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any


class Timed:
    """A callable that notes its times: wall clock, and the processor's share spent in the kernel.

    A large share is memory that malloc maps and the kernel zeroes, page by page, at every pass.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self.run = run
        self.seconds: list[float] = []
        self._user = self._system = 0.0

    def __call__(self) -> None:
        before, start = os.times(), time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - start)
        after = os.times()
        self._user += after.user - before.user
        self._system += after.system - before.system

    @property
    def system_share(self) -> float:
        """Kernel time over all processor time of this contender."""
        return self._system / max(self._user + self._system, 1e-9)


def rounds_within(seconds: float, contenders: Mapping[str, Callable[[], Any]]) -> int:
    """How many rounds of the contenders fit, from one round run now; 5 at least, 15 at most."""
    start = time.perf_counter()
    for run in contenders.values():
        run()
    return int(min(max(seconds / (time.perf_counter() - start), 5), 15))


def time_in_turn(
    benchmark: Any, contenders: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, Timed]:
    """Time the contenders in turn, ``rounds`` times; each must have run once before.

    pytest-benchmark times the last one itself and has the others run in its set-up, so that what
    disturbs the machine disturbs all alike.

    Raises:
        RuntimeError: pytest-benchmark was told not to measure.
    """
    if not benchmark.enabled:
        raise RuntimeError("pytest-benchmark is switched off (xdist? --benchmark-disable?)")
    timed = {name: Timed(run) for name, run in contenders.items()}
    *others, last = timed.values()

    def run_others() -> None:
        for other in others:
            other()

    benchmark.pedantic(last, setup=run_others, rounds=rounds, iterations=1)
    last.seconds = list(benchmark.stats.stats.data)
    return timed
