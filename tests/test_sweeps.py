"""The sweeps' own rules: which tapes are kept, what is spared, whose memory is used."""

import pytest
import torch
from compare import assert_close
from problems import Problem
from tolerances import META_GRADIENT

from fastmtt import batches, ops
from fastmtt.ops import reference_block
from fastmtt.student import make_student
from fastmtt.student.base import TapeOption
from fastmtt.student.zoo import ConvNet
from fastmtt.sweeps import Record, adjoint_sweep, check_gradient, forward_sweep, plan_tape

OPTIONS = [TapeOption("best", 5, 100.0), TapeOption("next", 20, 100.0)]
IMAGES = [1, 2, 2]  # a short batch first, as the published rule makes it


@pytest.mark.parametrize(
    ("memory", "want"),
    [
        (0, ["", "", ""]),
        (4, ["", "", ""]),
        (10, ["", "", "best"]),  # the last steps first: a truncated gradient stops after them
        (19, ["best", "", "best"]),
        (24, ["", "best", "best"]),
        (25, ["best", "best", "best"]),
        (105, ["best", "best next", "best next"]),
        (10**6, ["best next"] * 3),
    ],
)
def test_plan_takes_the_most_work_per_byte_and_the_last_steps(memory, want):
    kept = plan_tape(OPTIONS, IMAGES, memory)
    assert kept == [frozenset(keys.split()) for keys in want]


def test_steps_before_the_first_that_is_visited_keep_nothing():
    whole = plan_tape(OPTIONS, IMAGES, 10**9)
    late = plan_tape(OPTIONS, IMAGES, 10**9, first=1)
    assert whole[0] and late == [frozenset(), *whole[1:]]


def swept(memory, segments=2):
    """A problem after its forward sweep, as the matcher sets it up."""
    p = Problem(
        lambda: ConvNet((3, 16, 16), 3, depth=3, width=8), steps=4, segments=segments, labels="soft"
    )
    student = make_student(p.module, p.shape)
    steps = batches.SyntheticSteps(p.data["images"], p.data["labels"], segments, p.draws, None)
    theta, lr = student.pack(p.data["start"]), p.data["lr"].expand(4)
    return p, student, steps, lr, forward_sweep(student, theta, steps, lr, memory)


@pytest.mark.parametrize("memory", [None, 10_000, 60_000, 10**8])
def test_tapes_stay_within_the_budget(memory):
    p, student, steps, lr, record = swept(memory)
    used = sum(tape.room.bytes for tape in record.tapes)
    assert used <= (memory or 0)
    assert (memory is None) == (used == 0)
    if memory == 10**8:
        option = student.tape_options(steps.batch(0)[0])
        assert {tape.keep for tape in record.tapes} == {frozenset(o.key for o in option)}
        whole = sum(2 * steps.rows(t) * sum(o.bytes for o in option) for t in range(4))
        assert used == whole  # the options' sizes are what is really kept


def test_a_second_sweep_takes_no_more_memory():
    p, student, steps, lr, record = swept(30_000)
    rooms = [student.room, *(tape.room for tape in record.tapes)]

    def both_sweeps():
        forward_sweep(student, record.thetas[0].clone(), steps, lr, 30_000, record)
        steps.want(True, True)
        adjoint_sweep(student, record, steps, lr, torch.ones_like(record.thetas[0]))
        return [t.data_ptr() for room in rooms for t in room._tensors.values()]

    assert both_sweeps() == both_sweeps()


def test_kept_work_is_not_done_again(monkeypatch):
    calls, plain = [], reference_block._normalise
    monkeypatch.setattr(reference_block, "_normalise", lambda z: calls.append(z) or plain(z))
    counts = []
    for memory in (None, 10**8):
        _, student, steps, lr, record = swept(memory)
        steps.want(True, True)
        calls.clear()
        with ops.use("reference"):
            adjoint_sweep(student, record, steps, lr, torch.ones_like(record.thetas[0]))
        counts.append(len(calls))
    assert counts == [4 * 3, 4 * 1]  # three blocks a step; only the first is never kept


def test_record_holds_weights_and_gradients_of_every_step():
    p, student, steps, lr, record = swept(None)
    for t in range(4):
        x, y = steps.batch(t)
        _, g = student.gradient(record.thetas[t], x, y)
        assert torch.equal(g, record.gradients[t])
        assert_close(record.thetas[t + 1], record.thetas[t] - lr[t] * g, META_GRADIENT)


def test_a_given_room_is_used():
    p, student, steps, lr, record = swept(None)
    theta = record.thetas[0].clone()
    room = Record.empty(4, theta)
    again = forward_sweep(student, theta, steps, lr, room=room)
    assert again is room and torch.equal(again.thetas, record.thetas)


def test_only_what_is_wanted_is_computed(monkeypatch):
    p, student, steps, lr, record = swept(None)
    asked = []
    tangent = student.tangent

    def spy(v, theta, x, y, tape, needs, into):
        asked.append(frozenset(needs))
        return tangent(v, theta, x, y, tape, needs, into)

    monkeypatch.setattr(student, "tangent", spy)

    def needs_of(images, labels, gradient="exact", need_start=True):
        asked.clear()
        steps.want(images, labels)
        ones = torch.ones_like(record.thetas[0])
        adjoint_sweep(student, record, steps, lr, ones, gradient, need_start=need_start)
        return asked[::-1]

    every = frozenset({"theta", "x", "y"})
    assert needs_of(True, True) == [every] * 4
    assert needs_of(True, False, need_start=False) == [{"x"}] + [{"x", "theta"}] * 3
    assert needs_of(True, False, "tesla") == [{"x"}] * 4
    assert needs_of(False, False, "tesla") == []
    assert needs_of(False, False, need_start=False) == [{"theta"}] * 3
    assert needs_of(False, True, ("truncated", 2), need_start=False) == [{"y"}, {"y", "theta"}]


@pytest.mark.parametrize(
    "gradient",
    ["", "Exact", ("truncated",), ("truncated", 1.5), ("exact", 3), ("truncated", -1), None],
)
def test_unknown_gradients(gradient):
    with pytest.raises(ValueError, match="gradient must be 'exact', 'tesla' or"):
        check_gradient(gradient)


def test_known_gradients():
    assert check_gradient("exact") == ("exact", None)
    assert check_gradient("tesla") == ("tesla", None)
    assert check_gradient(("truncated", 3)) == ("truncated", 3)
