"""A matching step, forward and backward: the naive unroll, ours exact, ours tesla."""

from __future__ import annotations

from typing import Any

from bench import machine, memory
from bench.clock import rounds_within, time_in_turn
from bench.gate import check_agreement, check_precision
from bench.problem import OURS, Size, contender, forward_flop, make_problem
from bench.report import Report, quantiles, times_faster

SIZES = [Size(20, 10, 32), Size(50, 10, 128), Size(10, 100, 128)]
SMOKE_SIZES = [Size(3, 4, 8)]
STEP_FLOP = 9  # in F: an exact step with a full tape; the yardstick for every contender
ROUND_SECONDS = 120.0  # of measuring a size, unless the fewest rounds take longer


def test_matching_step(size: Size, benchmark: Any, report: Report) -> None:
    small = Size(2, 2, size.width)  # few ReLUs, so that most problems flip none
    problem = make_problem(size)
    verdicts = {name: check_precision(name, small) for name in OURS}
    agreement = {name: check_agreement(name, problem) for name in OURS}

    runs = {name: contender(name, problem) for name in ("naive", "tesla", "exact")}
    rounds = 2 if report.smoke else rounds_within(ROUND_SECONDS, runs)
    rates = machine.convolution_rates(size.batch, size.width, 0.05 if report.smoke else 1.0)
    timed = time_in_turn(benchmark, runs, rounds)

    work = STEP_FLOP * forward_flop(size.width) * size.batch * size.steps / 1e9
    for name, clock in timed.items():
        times = quantiles(clock.seconds)
        rate = work / times["median_s"]
        row = {
            "contender": name,
            **size._asdict(),
            "memory": 0,
            **times,
            "ms_a_step": times["median_s"] / size.steps * 1e3,
            "naive_over_this": times_faster(timed["naive"].seconds, clock.seconds),
            "peak_MB": memory.peak_bytes(memory.matching_step, name=name, **size._asdict()) / 1e6,
            "gflops_at_9F": rate,
            "convolution_gflops": rates["all"],
            "of_convolution": rate / rates["all"],
            "system_share": clock.system_share,
            "convolutions": rates,
        }
        if name in verdicts:
            row["precision"] = verdicts[name]._asdict()
            row["agreement"] = agreement[name]._asdict()
        report.add("matching", **row)
        benchmark.extra_info[name] = row
