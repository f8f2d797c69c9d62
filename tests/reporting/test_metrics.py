"""metrics.jsonl: what is read, what is left out, what counts where lines contradict."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_maker import add_average, evaluation, step, write_metrics

from fastmtt.errors import FastmttError
from fastmtt.reporting.metrics import Accuracy, Step, best, held_out_choice, number, read_metrics


def test_missing_and_empty_files_hold_nothing(tmp_path):
    missing = read_metrics(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").write_text("")
    assert missing == read_metrics(tmp_path / "metrics.jsonl")
    assert (missing.steps, missing.evaluations, missing.evaluated, missing.skipped) == ([],) * 3 + (
        0,
    )
    assert best(missing.evaluations) is None and held_out_choice(missing.evaluations) is None


def test_best_is_the_first_of_the_highest_as_distill_keeps_it(tmp_path):
    scores = {0: (20.0, 70.0), 10: (45.0, 80.0), 20: (45.0, None), 31: (None, 80.0)}
    write_metrics(tmp_path, [evaluation(i, *pair) for i, pair in scores.items()])
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert best(metrics.evaluations).iteration == 10
    assert held_out_choice(metrics.evaluations).iteration == 10
    assert metrics.averages == []
    assert metrics.evaluations[2].held_out == Accuracy(None, None)


def test_the_averages_figures_are_its_own(tmp_path):
    records = [evaluation(0, 20.0, 70.0), evaluation(10, 45.0, 60.0)]
    add_average(records[1])
    write_metrics(tmp_path, records)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    (average,) = metrics.averages
    assert (average.test, average.held_out) == (Accuracy(46.0, 0.125), Accuracy(61.0, 0.125))
    assert (average.iteration, average.networks, average.lr) == (10, 5, 0.01)
    assert [one.test.mean for one in metrics.evaluations] == [20.0, 45.0]


def test_iterations_stand_in_order_and_the_later_line_counts(tmp_path):
    write_metrics(tmp_path, [step(0), step(2), step(1), step(2, loss=0.25), step(3, loss=None)])
    steps = read_metrics(tmp_path / "metrics.jsonl").steps
    assert [(s.iteration, s.loss) for s in steps] == [(0, 0.5), (1, 0.5), (2, 0.25), (3, None)]


BROKEN = [
    '{"iteration": 1, "lo',
    "[1, 2]",
    "null",
    '{"iteration": 1.5, "loss": 1}',
    '{"iteration": -1, "loss": 1}',
    '{"iteration": true, "loss": 1}',
    '{"iteration": 1, "loss": "low"}',
    '{"loss": 1}',
    '{"iteration": 1, "accuracy": [1]}',
    "[" * 100_000,
]


@pytest.mark.parametrize("line", BROKEN)
def test_broken_lines_are_counted(tmp_path, line):
    write_metrics(tmp_path, [step(0)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(line)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert (len(metrics.steps), metrics.skipped) == (1, 1)


def test_file_without_one_good_line_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\x80\x81PNG\nno record\n")
    with pytest.raises(FastmttError, match="none of its 2 lines"):
        read_metrics(tmp_path / "metrics.jsonl")


@given(st.text(max_size=80) | st.binary(max_size=80))
def test_any_line_is_read_or_counted(tmp_path_factory, line):
    path = tmp_path_factory.mktemp("any") / "metrics.jsonl"
    written = line.encode("utf-8", "ignore") if isinstance(line, str) else line
    path.write_bytes(b'{"iteration": 0, "loss": 1}\n' + written)
    metrics = read_metrics(path)
    lines = re.split(r"\r\n|\r|\n", written.decode("utf-8", "replace"))
    assert metrics.skipped == len([line for line in lines if line.strip()])
    assert metrics.steps == [Step(0, 1.0, None, None)]


def test_numbers_beyond_floats_are_not_known():
    assert number(float("nan")) is None and number(float("inf")) is None
    assert number(10**400) is None and number(None) is None and number(2) == 2.0
    for wrong in ("1", True, [1.0], {}):
        with pytest.raises(ValueError, match="no number"):
            number(wrong)
