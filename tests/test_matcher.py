"""TrajectoryMatcher as callers meet it: what it promises, what it refuses and how it says so."""

import pytest
import torch
from compare import assert_all_close, assert_close
from problems import Problem, meta_gradients
from tolerances import META_GRADIENT
from torch import nn

import fastmtt
from fastmtt import FastmttError, TrajectoryMatcher, match_trajectory
from fastmtt.ops import backends
from fastmtt.student.zoo import ConvNet


def convnet():
    return ConvNet((3, 8, 8), 3, depth=1, width=4)


@pytest.fixture
def problem():
    return Problem(convnet, shape=(3, 8, 8), steps=3, batch=4)


def matched(problem, given, **options):
    return match_trajectory(problem.module, **{**given, **options})


def test_the_module_has_no_parameters_and_leaves_the_students_alone(problem):
    matcher = TrajectoryMatcher(problem.module, steps=3)
    assert list(matcher.parameters()) == [] and matcher.state_dict() == {}
    before = [p.clone() for p in problem.module.parameters()]
    given = problem.given()
    matcher(**given).backward()
    assert all(p.grad is None for p in problem.module.parameters())
    after = problem.module.parameters()
    assert all(torch.equal(p, b) for p, b in zip(after, before, strict=True))


def test_a_matcher_serves_many_iterations_with_the_bits_of_a_fresh_one(problem):
    matcher = TrajectoryMatcher(problem.module, steps=3)
    other = Problem(convnet, shape=(3, 8, 8), steps=3, batch=4, segments=2, seed=5)
    for p in (problem, other, problem):  # its memory changes shape and comes back
        given = p.given()
        loss = matcher(**given, draws=p.draws)
        expected, want = p.ours()
        assert torch.equal(loss, expected)
        got = meta_gradients(loss, given)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_matcher_that_forgot_gives_the_same_bits_from_new_memory(problem):
    matcher = TrajectoryMatcher(problem.module, steps=3)
    for _ in range(2):
        given = problem.given()
        loss = matcher(**given, draws=problem.draws)
        expected, want = problem.ours()
        got = meta_gradients(loss, given)
        assert torch.equal(loss, expected)
        assert all(torch.equal(got[name], want[name]) for name in want)
        assert matcher._room.bytes > 0 and matcher._last is not None
        matcher.forget()
        assert matcher._room.bytes == 0 and matcher._last is None


def test_backward_twice_gives_the_same(problem):
    given = problem.given()
    loss = problem.loss(given, memory=10**6)
    first = torch.autograd.grad(loss, given["images"], retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, given["images"])[0], first)


def test_only_what_requires_grad_gets_one(problem):
    _, want = problem.ours()
    for name in ("images", "lr", "start", "target"):
        given = {n: t.detach() for n, t in problem.given().items()}
        given[name].requires_grad_()
        problem.loss(given).backward()
        assert [n for n, t in given.items() if t.grad is not None] == [name]
        assert_close(given[name].grad, want[name], META_GRADIENT)


def test_soft_labels_alone():
    p = Problem(convnet, shape=(3, 8, 8), steps=3, labels="soft")
    given = {n: t.detach() for n, t in p.given().items()}
    p.loss(given | {"labels": given["labels"].requires_grad_()}).backward()
    assert_close(given["labels"].grad, p.naive()[1]["labels"], META_GRADIENT)


def test_no_graph_where_nothing_requires_grad(problem):
    given = {n: t.detach() for n, t in problem.given().items()}
    assert not problem.loss(given).requires_grad
    with torch.no_grad():
        assert not problem.loss(problem.given()).requires_grad


def test_generator_decides_the_draws(problem):
    def loss(seed=None, **options):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        given = problem.given()
        return matched(
            problem, given, steps=3, batch_size=2, augment=fastmtt.DSA(), generator=generator,
            **options,
        ).item()  # fmt: skip

    assert loss(1) == loss(1) != loss(2)
    torch.manual_seed(3)
    first = loss()
    assert first != loss()
    torch.manual_seed(3)
    assert first == loss()


def test_a_call_that_draws_nothing_leaves_torchs_generator_alone(problem):
    rows = [torch.tensor([0, 1])] * 3
    state = torch.get_rng_state()
    matched(problem, problem.given(), steps=3, indices=rows, augment=lambda x: x.flip(-1))
    assert torch.equal(torch.get_rng_state(), state)
    matched(problem, problem.given(), steps=3, indices=rows, augment=fastmtt.DSA())
    assert not torch.equal(torch.get_rng_state(), state)


def test_indices_shared_by_the_segments_or_one_each():
    p = Problem(convnet, shape=(3, 8, 8), steps=2, segments=2)
    rows = [torch.tensor([0, 1, 5]), torch.tensor([4, 4])]  # a row may come twice
    shared = matched(p, p.given(), steps=2, indices=rows)
    each = matched(p, p.given(), steps=2, indices=[torch.stack([r, r]) for r in rows])
    assert torch.equal(shared, each)
    p.draws = p.draws._replace(indices=[torch.stack([r, r]) for r in rows])
    given = p.given()
    got = meta_gradients(matched(p, given, steps=2, indices=rows), given)
    assert_all_close(got, p.naive()[1], META_GRADIENT)


def test_a_number_serves_as_learning_rate(problem):
    given = problem.given()
    given["lr"] = 0.05
    problem.data["lr"] = torch.tensor(0.05, dtype=torch.float64)
    assert_close(problem.loss(given), problem.naive()[0], META_GRADIENT)


def test_create_graph_is_refused(problem):
    given = problem.given()
    with pytest.raises(RuntimeError, match="create_graph=True.*compat.ReparamModule"):
        torch.autograd.grad(problem.loss(given), given["images"], create_graph=True)


def test_a_later_forward_makes_backward_stale(problem):
    given, matcher = problem.given(), TrajectoryMatcher(problem.module, steps=3)
    first = matcher(**given)
    second = matcher(**given)
    with pytest.raises(RuntimeError, match="ran forward again.*call backward first"):
        first.backward()
    second.backward()


@pytest.mark.parametrize("name", ["images", "labels", "lr", "start", "target"])
@pytest.mark.parametrize("segments", [1, 2])
def test_an_input_changed_in_place_is_noticed(name, segments):
    p = Problem(convnet, shape=(3, 8, 8), steps=2, segments=segments, labels="soft")
    given = p.given()
    loss = p.loss(given)
    with torch.no_grad():
        given[name].mul_(1.0)
    with pytest.raises(RuntimeError, match="changed in place.*change them after backward"):
        loss.backward()


OPTIONS = [
    (dict(gradient="full"), "gradient must be 'exact', 'tesla' or .'truncated', k. .*got 'full'"),
    (dict(gradient=("truncated", 0)), "k >= 1"),
    (dict(gradient="truncated"), "gradient must be"),
    (dict(precision="fp16"), "precision must be None, 'fp32', 'tf32' or 'bf16', got 'fp16'"),
    (dict(steps=0), "steps must be a whole number of at least 1, got 0"),
    (dict(batch_size=0), "batch_size must be a whole number of at least 1, got 0"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_unknown_options(problem, options, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryMatcher(problem.module, **{"steps": 3, **options})


def changed(name, change):
    return lambda given: given | {name: change(given[name])}


INPUTS = [
    (changed("target", lambda t: t[:, 1:]), "start and target must have one shape"),
    (
        lambda g: g | {n: g[n][:, 1:] for n in ("start", "target")},
        r"start must be .*the student has",
    ),
    (
        lambda g: g | {n: g[n][None] for n in ("start", "target")},
        "must be float32 or float64",
    ),
    (changed("labels", lambda t: t[1:]), "images .* with labels .*, got"),
    (lambda g: g | {n: g[n][:0] for n in ("images", "labels")}, "at least one image, got none"),
    (
        changed("labels", lambda t: t.int()),
        "must be int64 or floating point, got torch.int32",
    ),
    (
        changed("images", lambda t: t.float()),
        "images of .* are torch.float32, theta is",
    ),
    (changed("labels", lambda t: t.new_ones(6, 3).float()), "labels of .* are torch.float32"),
    (changed("lr", lambda t: t.expand(2)), r"lr must be a scalar or one a step \[3\], got \[2\]"),
    (
        lambda g: g | {"indices": [torch.tensor([0])]},
        "indices must hold one tensor a step, 3, got 1",
    ),
    (lambda g: g | {"indices": [torch.tensor([0.5])] * 3}, r"indices\[0\] must be int64 \[b\]"),
    (lambda g: g | {"indices": [torch.zeros(2, 1).long()] * 3}, r"must be int64 \[b\] or \[1,b\]"),
    (lambda g: g | {"indices": [torch.tensor([6])] * 3}, r"must lie in 0..5, the rows of the set"),
    (lambda g: g | {"indices": [torch.tensor([-1])] * 3}, r"must lie in 0..5"),
]


@pytest.mark.parametrize(("change", "message"), INPUTS)
def test_inputs_that_do_not_fit(problem, change, message):
    with pytest.raises(ValueError, match=message):
        TrajectoryMatcher(problem.module, steps=3)(**change(problem.given()))


@pytest.mark.parametrize("keep", [torch.ones(3).bool(), torch.ones(2, 2).long(), torch.ones(4)])
def test_a_mask_that_does_not_fit(problem, keep):
    with pytest.raises(ValueError, match=r"keep must be a boolean mask \[\d+\] or int64 indices"):
        problem.ours(keep=keep)


@pytest.mark.parametrize(
    ("layer", "words"),
    [(nn.BatchNorm2d(3), "BatchNorm2d.*GroupNorm"), (nn.Dropout(0.5), "Dropout.*draws anew")],
)
def test_students_that_are_no_functions_are_refused(layer, words):
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(192, 3)).double()
    size = sum(p.numel() for p in net.parameters())
    theta, images = torch.zeros(size).double(), torch.zeros(2, 3, 8, 8).double()
    given = (theta, theta + 1, images, torch.tensor([0, 1]), 0.1)
    with pytest.raises(ValueError, match=words):
        match_trajectory(net, *given, steps=2)
    assert match_trajectory(net.eval(), *given, steps=2).isfinite()  # as the message advises


def test_a_loss_function_that_is_no_number(problem):
    with pytest.raises(ValueError, match="loss_fn must return one number.*take its mean"):
        problem.ours(
            loss_fn=lambda logits, y: nn.functional.cross_entropy(logits, y, reduction="none")
        )


def test_backends(problem):
    _, want = problem.ours()
    _, got = problem.ours(backend="reference")
    assert_all_close(got, want, META_GRADIENT)
    with pytest.raises(FastmttError, match="backend 'tpu' is not known; known are reference, cpu"):
        problem.ours(backend="tpu")


def test_forced_reference_runs_no_compiled_kernel_in_either_sweep(problem, monkeypatch):
    def refuse(op):
        raise AssertionError(f"{op} ran compiled")

    monkeypatch.setattr(backends, "_compiled_op", refuse)
    problem.ours(backend="reference")
