"""A matching step, forward and backward: ours, exact and tesla, against three opponents."""

from __future__ import annotations

from typing import Any

from bench import contest, floor
from bench.contest import NAIVE, Results
from bench.gate import JUDGES, check_agreement, check_precision
from bench.naive import Gradients
from bench.problem import OURS, PRECISIONS, Size, contender, forward_flop, make_problem, prepare
from bench.report import Report
from bench.worker import DEFAULT, TUNED, Worker

SIZES = [
    Size(20, 100, 128),
    Size(20, 100, 128, "bf16"),
    Size(50, 10, 128),
    Size(50, 10, 128, "bf16"),
    Size(20, 10, 32),
]
SMOKE_SIZES = [Size(3, 4, 8), Size(3, 4, 8, "bf16")]
STEP_FLOP = 9  # in F: an exact step with a full tape; the yardstick for every contender


def test_matching_step(size: Size, benchmark: Any, report: Report) -> None:
    ours = OURS if size.precision in PRECISIONS else {}
    small = size._replace(steps=2, batch=2)  # few ReLUs, so that most problems flip none
    precision = {name: check_precision(name, small) for name in ("adjoint", *ours)}
    problem = make_problem(size)
    judged_apart = {name: contender(JUDGES[name], problem)() for name in ours if name in JUDGES}
    agreement = {}

    def judge(results: Results) -> None:
        naive = Gradients(*results[NAIVE])
        for name, found in results.items():
            truth = judged_apart.get(name, naive)
            agreement[name] = check_agreement(name, size, Gradients(*found), truth)

    compiler = contest.compiler(report.smoke)
    fields = size._asdict()
    contenders = {
        NAIVE: Worker(prepare, DEFAULT, name="naive", **fields),
        "naive tuned": Worker(prepare, TUNED, name="naive", **fields),
        "adjoint": Worker(prepare, TUNED, name="adjoint", compiler=compiler, **fields),
        **{name: Worker(prepare, DEFAULT, name=name, **fields) for name in ours},
    }
    convolutions = size.batch, size.width, size.precision
    held = contest.hold(benchmark, contenders, judge, convolutions, smoke=report.smoke)

    least = size.steps * floor.total(held.best, floor.MATCHING)
    work = STEP_FLOP * forward_flop(size.width) * size.batch * size.steps / 1e9
    for name in contenders:
        columns = held.columns(name, least)
        memory = ours[name][1] if name in ours else None
        row = {"contender": name, **fields, "memory": memory, **columns}
        if name in held.timed:
            row["ms_a_step"] = columns["median_s"] / size.steps * 1e3
            row["gflops_at_9F"] = work / columns["median_s"]
            row["agreement"] = agreement[name]._asdict()
        if name in precision:
            row["precision_check"] = precision[name]._asdict()
        report.add("matching", **row, convolutions_ms=floor.milliseconds(held.best))
        benchmark.extra_info[name] = row
