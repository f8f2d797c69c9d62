"""What is recorded on a GPU, run plainly here: looks at nothing, stays in place, equal bits."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from problems import Problem, meta_gradients
from recordable import Moved, Recordable, watched
from torch._subclasses.fake_tensor import FakeTensorMode

import fastmtt
from fastmtt import TrajectoryMatcher, batches, iteration
from fastmtt.capture import Captured, Latest, can_capture, send
from fastmtt.decode import Decode
from fastmtt.ops import backends, reference, use
from fastmtt.parametrisation import Canvas
from fastmtt.student import Room, make_student
from fastmtt.student.zoo import ConvNet

KINDS = {
    "hard labels": dict(),
    "three segments, soft labels, DSA": dict(segments=3, labels="soft", dsa="S"),
    "a rate a step, all of DSA": dict(segments=2, lr="per step", dsa="M"),
    "canvases": dict(segments=2, labels="soft", dsa="S", parametrisation=Canvas(2, 3)),
    "cells": dict(segments=2, labels="soft", parametrisation=Decode(3, "multi")),
}
OPTIONS = {
    "exact": dict(),
    "with a tape": dict(memory=30_000),
    "tesla": dict(gradient="tesla"),
    "truncated, a mask": dict(gradient=("truncated", 2), keep=torch.arange(3, 90)),
    "a keep of one's own": dict(keep=lambda squares: torch.tensor(squares.argsort()[7:].tolist())),
}


def convnet():
    return ConvNet((3, 16, 16), 3, depth=2, width=4)


@pytest.fixture
def recorded(monkeypatch, extension):
    """Every captured function under watch, with scratch as on a GPU."""
    monkeypatch.setattr(Room, "scratch", lambda *_: torch.empty(0, dtype=torch.uint8))
    monkeypatch.setattr(Recordable, "made", [])
    monkeypatch.setattr(iteration, "Captured", Recordable)
    return Recordable.made


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_iterations_are_recordable_and_have_the_bits_of_fresh_matchers(
    kinds, options, recorded, monkeypatch
):
    problems = [Problem(convnet, steps=4, seed=seed, **kinds) for seed in range(3)]
    first = problems[0]
    common = dict(augment=first.augment, parametrisation=first.parametrisation)
    matcher = TrajectoryMatcher(first.module, steps=4, **common, **options)
    for p in problems:
        given = p.given()
        loss = matcher(**given, draws=p.draws)
        got = meta_gradients(loss, given)
        with monkeypatch.context() as patch:
            patch.setattr(iteration, "Captured", Captured)
            expected, want = p.ours(**options)
        assert torch.equal(loss, expected)
        assert all(torch.equal(got[name], want[name]) for name in want)
    assert [captured.calls for captured in recorded] == [3, 3]  # both sweeps, each made once


def test_skipped_backwards_and_repeated_ones_change_nothing(recorded):
    first, second = (Problem(convnet, steps=3, seed=seed) for seed in (0, 1))
    matcher = TrajectoryMatcher(first.module, steps=3)
    for p, backwards in [(first, 0), (second, 2), (first, 1), (second, 1)]:
        given, (_, want) = p.given(), p.ours()
        loss = matcher(**given, draws=p.draws)
        for _ in range(backwards):
            got = torch.autograd.grad(loss, given["images"], retain_graph=True)[0]
            assert torch.equal(got, want["images"])


def test_what_was_handed_out_stays_as_it_was():
    first, second = (Problem(convnet, steps=3, seed=seed, labels="soft") for seed in (0, 1))
    matcher = TrajectoryMatcher(first.module, steps=3)
    given = first.given()
    loss = matcher(**given, draws=first.draws)
    names = [name for name, t in given.items() if t.requires_grad]
    found = [loss.detach(), *torch.autograd.grad(loss, [given[name] for name in names])]
    kept = [t.clone() for t in found]
    loss = matcher(**second.given(), draws=second.draws)
    loss.backward()
    assert all(map(torch.equal, found, kept))


def test_patterns_of_batches_and_shapes_have_their_own_memory(recorded):
    module = Problem(convnet, steps=3).module
    matcher = TrajectoryMatcher(module, steps=3)
    for _ in range(2):
        for batch in (4, 6, 2):  # more kinds than are kept
            p = Problem(convnet, steps=3, batch=batch, n=6)
            given = p.given()
            loss = matcher(**given, draws=p.draws)
            assert torch.equal(loss, p.loss(p.given()))
    assert len(matcher._iterations._kept) == 2


def shape_of_dsa(x, kind, values, cutout):
    """Both arguments must lie where the images do, as for the kernel."""
    assert kind.device == values.device == x.device
    return torch.empty_like(x)


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("keep", [None, lambda squares: squares > 0])
def test_on_a_gpus_tensors_no_two_devices_meet_and_rows_begin_aligned(keep, distinct, monkeypatch):
    """By tensors without memory, which take part in every device check."""
    p = Problem(convnet, steps=3, segments=2, labels="soft", dsa="S")
    p.draws = p.draws._replace(distinct=distinct)
    matcher = TrajectoryMatcher(
        p.module, steps=3, augment=p.augment, keep=keep, memory=30_000, graph=False
    )
    matcher(**p.given(), draws=p.draws)  # what is asked of the module once is asked with values
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(reference, "dsa", shape_of_dsa)
    monkeypatch.setattr(reference, "dsa_transpose", shape_of_dsa)
    monkeypatch.setattr(backends, "on_device", lambda like: nullcontext())  # there is none
    with FakeTensorMode(allow_non_fake_inputs=True), use("reference"):
        given = {
            name: torch.empty(t.shape, dtype=t.dtype, device="cuda")
            for name, t in p.given(torch.float32).items()
        }
        assert matcher(**given, draws=p.draws).is_cuda
        iteration = matcher._last
        found = iteration.backward(torch.empty((), device="cuda"), (True,) * 5)
    for name, gradient in zip(("images", "labels", "lr", "start", "target"), found, strict=True):
        assert gradient.is_cuda and gradient.shape == given[name].shape
    record = iteration.record
    for rows in (record.thetas, record.gradients, record.adjoint, record.hv, iteration.goal):
        assert rows.shape[-1] == p.size and all(step % 32 == 0 for step in rows.stride()[:-1])


@pytest.mark.parametrize(
    "look",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: bool(t[0] > 0),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: t.cpu().numpy(),
        lambda t: t.to("meta"),
    ],
)
def test_the_watch_sees_looks(look):
    t = torch.arange(3.0)
    with pytest.raises(AssertionError, match="looks on the host"), watched():
        look(t)


def test_the_watch_sees_tensors_that_move():
    places = [torch.zeros(3)]
    captured = Recordable(graph=False)
    for _ in range(3):
        captured(lambda: places[-1] + 1)
    places.append(torch.zeros(3))
    with pytest.raises(Moved, match="lie elsewhere"):
        captured(lambda: places[-1] + 1)


def test_without_a_gpu_a_captured_function_is_called():
    calls, captured = [], Captured(graph=False)
    assert [captured(lambda: calls.append(1) or len(calls)) for _ in range(3)] == [1, 2, 3]


def test_a_matchers_memory_goes_with_it():
    """At once, not when Python next looks for circles: it is most of what there is."""
    p = Problem(convnet, steps=3)
    matcher = TrajectoryMatcher(p.module, steps=3)
    loss = matcher(**p.given(), draws=p.draws)
    loss.backward()
    memory = weakref.ref(matcher._last)
    gc.disable()
    try:
        del matcher, loss
        assert memory() is None
    finally:
        gc.enable()


def test_the_latest_few_are_kept():
    made, latest = [], Latest(2)
    for key in "abacab":
        assert latest.get(key, lambda key=key: made.append(key) or key * 2) == key * 2
    assert made == list("abcb")


def test_on_a_cpu_nothing_is_recorded():
    student = make_student(convnet(), (3, 16, 16))
    assert not can_capture(True, student, False, torch.zeros(1))


def test_draws_in_place_are_the_draws():
    kinds = dict(steps=5, segments=2, n=7, batch_size=3, image_shape=(3, 8, 8))
    for augment in (None, fastmtt.DSA(), fastmtt.DSA(mode="M"), fastmtt.DSA("none")):
        first, second = (batches.draw(seed=s, augment=augment, **kinds) for s in (0, 1))
        placed = batches.PlacedDraws(first, torch.device("cpu"))
        views = placed.draws
        placed.put(second)
        assert views.shapes == second.shapes
        assert all(map(torch.equal, views.indices, second.indices))
        for got, want in zip(views.parameters or [], second.parameters or [], strict=True):
            assert all(map(torch.equal, got, want))


def test_sending_copies():
    place = torch.zeros(2, 3)
    send(torch.arange(6).view(3, 2).T, place)
    assert torch.equal(place, torch.tensor([[0.0, 2, 4], [1, 3, 5]]))
