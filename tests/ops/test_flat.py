"""The compiled sgd_update, sgd_momentum, dot and sqdist against float64 formulas."""

import os

import pytest
import torch
from compare import assert_close
from tolerances import FORMULA

from fastmtt.ops import backends

# 1 student and several; shorter than a lane group, odd, and more than one task of chunks.
SHAPES = [(1, 1), (1, 7), (3, 5), (3, 4099), (2, 70001)]
EMPTY = [(0, 5), (3, 0), (0, 0)]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True, scope="module")
def extension():
    missing = backends.extension_error()
    if missing and os.environ.get("FASTMTT_REQUIRE_EXT") == "1":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Deterministic mode fills fresh memory with NaN, so that an element left out shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def ops():
    return torch.ops.fastmtt


def pair(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2)]


def assert_sum(got, terms):
    """`got` [S] is the sum of `terms` [S,P] (float64), rounded once to got's dtype."""
    want = terms.sum(-1)
    # Adding up in float64 errs by its epsilon times the size of the terms, whatever got's dtype.
    noise = 1e-14 * terms.abs().sum(-1)
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= torch.finfo(got.dtype).eps * want.abs() + noise).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_sgd_update(shape, dtype):
    theta, g = pair(shape, dtype)
    rates = torch.linspace(0.01, 0.5, shape[0], dtype=dtype)
    for lr in (torch.tensor(0.3, dtype=dtype), rates):
        want = theta.double() - lr.double().reshape(-1, 1) * g.double()
        got = ops().sgd_update(theta, g, lr)
        assert got.dtype == dtype and got.is_contiguous()
        scale = theta.abs() + (lr.reshape(-1, 1) * g).abs()
        assert ((got.double() - want).abs() <= torch.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_sgd_momentum(shape, dtype):
    (theta, g), velocity = pair(shape, dtype), pair(shape, dtype, seed=1)[0]
    rates = torch.linspace(0.01, 0.5, shape[0], dtype=dtype)
    eps = torch.finfo(dtype).eps
    for lr in (torch.tensor(0.3, dtype=dtype), rates):
        terms = [0.9 * velocity.double(), g.double(), 0.05 * theta.double()]
        size = sum(term.abs() for term in terms)
        moved, moving = ops().sgd_momentum(theta, g, velocity, lr, 0.9, 0.05)
        assert moved.dtype == moving.dtype == dtype and moving.is_contiguous()
        assert ((moving.double() - sum(terms)).abs() <= 3 * eps * size).all()
        wide = lr.double().reshape(-1, 1)
        scale = theta.double().abs() + wide * size
        assert (
            (moved.double() - (theta.double() - wide * sum(terms))).abs() <= 4 * eps * scale
        ).all()


def test_sgd_momentum_is_that_of_torch():
    """Steps from no momentum on quadratics, whose curvature is each weight's own."""
    start, curvature = pair((2, 5), torch.float64)
    theta, velocity, lr = start, torch.zeros_like(start), torch.tensor(0.1, dtype=torch.float64)
    weights = start.clone().requires_grad_()
    torchs = torch.optim.SGD([weights], lr=0.1, momentum=0.9, weight_decay=0.05)
    for _ in range(4):
        theta, velocity = ops().sgd_momentum(theta, curvature * theta, velocity, lr, 0.9, 0.05)
        weights.grad = curvature * weights.detach()
        torchs.step()
    assert_close(theta, weights, FORMULA)
    assert_close(velocity, torchs.state[weights]["momentum_buffer"], FORMULA)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
def test_dot(shape, dtype):
    a, b = pair(shape, dtype)
    got = ops().dot(a, b)
    assert got.dtype == dtype
    assert_sum(got, a.double() * b.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES + EMPTY)
@pytest.mark.parametrize("mask", ["none", "P", "SP"])
def test_sqdist(shape, dtype, mask):
    theta, target = pair(shape, dtype)
    generator = torch.Generator().manual_seed(1)
    keep = {"none": None, "P": shape[1:], "SP": shape}[mask]
    keep = keep if keep is None else torch.rand(keep, generator=generator) < 0.5
    terms = (theta.double() - target.double()) ** 2
    if keep is not None:
        terms = torch.where(keep, terms, 0.0)
    got = ops().sqdist(theta, target, keep)
    assert got.dtype == dtype
    assert_sum(got, terms)


def test_sqdist_does_not_look_at_what_is_not_kept():
    theta = torch.tensor([[1.0, float("inf"), 2.0]])
    keep = torch.tensor([True, False, True])
    assert ops().sqdist(theta, torch.zeros(1, 3), keep).item() == 5.0


def test_float32_sums_are_added_in_double():
    a = torch.full((1, 1 << 20), 0.1)
    a[0, 0] = 1e6  # in float32 the later terms would lose most of their digits against it
    want = 1e12 + ((1 << 20) - 1) * a[0, 1].double().item() ** 2
    assert ops().dot(a, a).item() == torch.tensor(want).item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_arguments(dtype):
    theta, g = pair((3, 101), dtype)
    lr = torch.tensor([0.1, 9.0, 0.2, 9.0, 0.3], dtype=dtype)[::2]
    keep = torch.arange(101) % 3 == 0
    columns = torch.empty(101, 3, dtype=dtype).T  # rows are strided in memory
    rows = torch.empty(3, 150, dtype=dtype)[:, 20:121]  # a slice of longer rows
    for layout in (columns, rows):
        other = layout.copy_(g)
        assert torch.equal(
            ops().sgd_update(theta, other, lr), ops().sgd_update(theta, g, lr.clone())
        )
        moved = ops().sgd_momentum(theta, other, other, lr, 0.9, 0.05)
        want = ops().sgd_momentum(theta, g, g, lr.clone(), 0.9, 0.05)
        assert torch.equal(moved[0], want[0]) and torch.equal(moved[1], want[1])
        assert torch.equal(ops().dot(other, theta), ops().dot(g, theta))
        assert torch.equal(
            ops().sqdist(other, theta, keep.expand(3, 101)), ops().sqdist(g, theta, keep)
        )
    one = theta[:1].expand(3, 101)
    assert torch.equal(ops().dot(one, g), ops().dot(one.contiguous(), g))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_with_any_number_of_threads(dtype):
    a, b = pair((3, 70001), dtype)
    keep = a[0] > 0
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(torch.stack([ops().dot(a, b), ops().sqdist(a, b, keep)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


A, B, LR = torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops().dot(A[0], A[0]), r"dot: a must have shape \[S, P\], got \[3\]"),
        (lambda: ops().dot(A, B), r"b must have the shape of a, \[2, 3\], got \[2, 4\]"),
        (lambda: ops().dot(A, A.double()), "b must have the dtype of a, Float, got Double"),
        (lambda: ops().dot(A.half(), A.half()), "a must be float32 or float64, got Half"),
        (lambda: ops().sgd_update(A, B, LR), r"g must have the shape of theta, \[2, 3\]"),
        (
            lambda: ops().sgd_update(A, A, torch.zeros(3)),
            r"lr must have shape \[\] or .* got \[3\]",
        ),
        (lambda: ops().sgd_update(A, A, LR.double()), "lr must have the dtype of theta, Float"),
        (
            lambda: ops().sgd_momentum(A, A, A[:1], LR, 0.9, 0.0),
            r"sgd_momentum: velocity must have the shape of theta, \[2, 3\], got \[1",
        ),
        (
            lambda: ops().sgd_momentum(A, A, A, LR.double(), 0.9, 0.0),
            "sgd_momentum: lr must have the dtype of theta, Float",
        ),
        (
            lambda: ops().sqdist(A, A[:1], None),
            r"target must have the shape of theta, \[2, 3\], got \[1",
        ),
        (lambda: ops().sqdist(A, A, A), "keep must be bool, got Float"),
        (lambda: ops().sqdist(A, A, A[0, :2] > 0), r"keep must have shape \[P\] or \[S, P\]"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(RuntimeError, match=words):
        call()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype):
    a, b = pair((3, 37), dtype)
    lr, keep = torch.full((3,), 0.1, dtype=dtype), a > 0
    torch.library.opcheck(ops().sgd_update.default, (a, b, lr))
    torch.library.opcheck(ops().sgd_update.default, (a, b, lr[0]))
    torch.library.opcheck(ops().sgd_momentum.default, (a, b, b, lr, 0.9, 0.05))
    torch.library.opcheck(ops().dot.default, (a, b))
    torch.library.opcheck(ops().sqdist.default, (a, b, None))
    torch.library.opcheck(ops().sqdist.default, (a, b, keep))
    torch.library.opcheck(ops().sqdist.default, (a, b, keep[0]))
