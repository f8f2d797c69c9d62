"""One workload, done by every contender in turn: prepared, judged, timed, and made into rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bench import floor
from bench.clock import Timed, rounds_within, time_in_turn
from bench.worker import TUNED, Failed, Worker

FLOOR = "floor"
NAIVE = "naive"
ROUND_SECONDS = 120.0  # of measuring a workload, unless the fewest rounds take longer
SMOKE_ROUNDS = 2
FLOOR_SECONDS = 0.1  # a round and convolution

Results = dict[str, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Contest:
    """What came of one.

    Attributes:
        timed: who was timed, by name, the floor among them.
        tuned: the opponents whose malloc was tuned.
        best: the shortest time of each convolution [layer, kind].
        failed: what the others died of.
    """

    timed: Mapping[str, Timed]
    tuned: tuple[str, ...]
    best: Tensor
    failed: Mapping[str, str]

    def columns(self, name: str, least: float) -> dict[str, Any]:
        """Times, memory and ratios of a contender; where it failed, its reason instead.

        Args:
            name: the contender's.
            least: seconds of the workload's convolutions.
        """
        if name in self.failed:
            return {"malloc": "tuned", "failed": self.failed[name]}
        clock = self.timed[name]
        strongest = min((self.timed[other] for other in self.tuned), key=lambda t: t.median)
        return {
            "malloc": "tuned" if name in self.tuned else "default",
            **clock.columns(),
            "naive_over_this": self.timed[NAIVE].over(clock),
            "best_tuned_over_this": strongest.over(clock),
            "naive_peak_over_this": self.timed[NAIVE].peak / max(clock.peak, 1),
            "floor_over_this": least / clock.median,
        }


def compiler(smoke: bool) -> str:
    """The backend of ``torch.compile``; a smoke run has no half minute for a compilation."""
    return "aot_eager" if smoke else "inductor"


def hold(
    benchmark: Any,
    contenders: Mapping[str, Worker],
    judge: Callable[[Results], None],
    convolutions: tuple[int, int, str],
    *,
    smoke: bool,
) -> Contest:
    """Have the contenders' first results judged, then time them and the floor in turn.

    A contender that compiles may fail to: it is left out and its reason kept.

    Args:
        benchmark: pytest-benchmark's fixture; it times the last contender.
        contenders: their processes by name, "naive" among them.
        judge: raises where the first results do not agree.
        convolutions: the floor's batch, width and precision.
        smoke: two rounds are enough.
    """
    failed = {}
    batch, width, precision = convolutions
    seconds = FLOOR_SECONDS / 10 if smoke else FLOOR_SECONDS
    sizes = {"batch": batch, "width": width, "precision": precision, "seconds": seconds}
    workers = {FLOOR: Worker(floor.prepare, TUNED, **sizes), **contenders}
    with ExitStack() as stack:
        for worker in workers.values():
            stack.enter_context(worker)
        ready = dict(workers)
        for name, worker in workers.items():
            try:
                worker.prepare()
            except Failed as error:
                if not worker.compiles:
                    raise
                failed[name] = str(error).splitlines()[0]
                del ready[name]
        first = {name: worker.run() for name, worker in ready.items()}
        judge({name: ready[name].result() for name in contenders if name in ready})
        rounds = SMOKE_ROUNDS if smoke else rounds_within(ROUND_SECONDS, list(first.values()))
        timed = time_in_turn(benchmark, ready, rounds)
        (best,) = ready[FLOOR].result()
    tuned = tuple(name for name in timed if workers[name].tuned and name != FLOOR)
    return Contest(timed, tuned, best, failed)
