"""DSA's compiled maps against the reference; their transposes as exact adjoints."""

import pytest
import torch
from compare import relative_error
from samples import dsa_values, normal
from tolerances import FORMULA, ROUNDING_32, TIMES_TORCH

from fastmtt.ops import reference
from fastmtt.ops.reference_dsa import KINDS

# (S, B, C, H, W): one pixel; one row; fewer, as many and more channels than go side by side; more
# pixels than a block of colours has.
SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 2, 3, 1, 6),
    (2, 3, 3, 8, 9),
    (1, 2, 4, 5, 3),
    (1, 2, 9, 7, 6),
    (2, 2, 2, 33, 35),
]
OPS = ["dsa", "dsa_transpose"]
EVERY = pytest.mark.parametrize("kind", range(7), ids=KINDS)
EACH = pytest.mark.parametrize("shape", SHAPES, ids=str)

pytestmark = pytest.mark.usefixtures("extension")


def compiled(op):
    return getattr(torch.ops.fastmtt, op)


def arguments(shape, kind, seed=0):
    x = normal(torch.Generator().manual_seed(seed), *shape)
    return x, torch.full(shape[:1], kind), dsa_values(kind, *shape[:2]), 0.5


def dot(a, b):
    return (a * b).sum()


@pytest.mark.filterwarnings("ignore:.*affine_grid:UserWarning")  # the reference's, of one pixel
@EVERY
@EACH
@pytest.mark.parametrize("op", OPS)
def test_float64_agrees_with_the_reference(op, shape, kind):
    for seed in range(3):
        given = arguments(shape, kind, seed)
        got, want = compiled(op)(*given), getattr(reference, op)(*given)
        assert got.shape == want.shape and got.dtype == want.dtype and got.is_contiguous()
        assert (got - want).norm() <= FORMULA * given[0].norm()


@EVERY
@EACH
def test_transposes_are_exact_adjoints(shape, kind):
    """<A x, y> = <x, A^T y>; brightness is added and no part of A."""
    x, kinds, values, hole = arguments(shape, kind)
    y = normal(torch.Generator().manual_seed(9), *shape)
    zero = compiled("dsa")(torch.zeros_like(x), kinds, values, hole)
    there = dot(compiled("dsa")(x, kinds, values, hole) - zero, y)
    back = dot(x, compiled("dsa_transpose")(y, kinds, values, hole))
    assert (there - back).abs() <= FORMULA * x.norm() * y.norm()


@EVERY
@pytest.mark.parametrize("op", OPS)
def test_float32_errs_little_more_than_torch(op, kind):
    x, *rest = arguments((2, 5, 3, 32, 32), kind)
    single = x.float()
    truth = getattr(reference, op)(single.double(), *rest)
    got, torchs = compiled(op)(single, *rest), getattr(reference, op)(single, *rest)
    assert got.dtype == torch.float32
    allowed = TIMES_TORCH * relative_error(torchs, truth) + ROUNDING_32
    assert relative_error(got, truth) <= allowed


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_depends_on_threads_company_or_strides(op, dtype):
    x = normal(torch.Generator().manual_seed(0), 7, 20, 3, 33, 32).to(dtype)
    kinds = torch.arange(7)
    values = torch.cat([dsa_values(kind, 1, 20) for kind in range(7)])
    whole = compiled(op)(x, kinds, values, 0.5)
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(compiled(op)(x, kinds, values, 0.5), whole)
    finally:
        torch.set_num_threads(before)
    for s in range(7):
        one = slice(s, s + 1)
        image = compiled(op)(x[one, 3:4], kinds[one], values[one, 3:4], 0.5)
        assert torch.equal(image, whole[one, 3:4])
    last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    every_other = values.repeat_interleave(2, 1)[:, ::2].double()
    assert torch.equal(compiled(op)(last, kinds, every_other, 0.5), whole)


@EVERY
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_values_out_of_all_bounds_stay_within_memory(op, kind, value):
    x, kinds, values, hole = arguments((1, 2, 3, 8, 9), kind)
    got = compiled(op)(x, kinds, torch.full_like(values, value), hole)
    if KINDS[kind] in ("crop", "scale"):
        assert got[..., 1:, 1:].count_nonzero() == 0
    if KINDS[kind] in ("none", "cutout"):
        assert torch.equal(got, x)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "position, wrong, sentence",
    [
        (0, lambda t: t[0], r"must have shape \[S, B, C, H, W\], got \[3, 3, 8, 9\]"),
        (0, lambda t: t.half(), "must be float32 or float64, got Half"),
        (1, lambda t: t[:1], r"kind must be int64 of shape \[2\], got Long of shape \[1\]"),
        (1, lambda t: t.int(), r"kind must be int64 of shape \[2\], got Int"),
        (1, lambda t: t + 6, r"kind must lie in 0..6, got 8"),
        (1, lambda t: t - 3, r"kind must lie in 0..6, got -1"),
        (2, lambda t: t[..., :2], r"values must be floating point of shape \[2, 3, 3\], got Float"),
        (2, lambda t: t.long(), "values must be floating point of shape .* got Long"),
    ],
)
def test_wrong_arguments_are_named(op, position, wrong, sentence):
    given = list(arguments((2, 3, 3, 8, 9), 2))
    given[position] = wrong(given[position])
    with pytest.raises(RuntimeError, match=f"fastmtt::{op}: .*{sentence}"):
        compiled(op)(*given)


@pytest.mark.parametrize("op", OPS)
def test_no_images_are_no_work(op):
    x, kinds, values, hole = arguments((2, 3, 3, 8, 9), 5)
    assert compiled(op)(x[:, :0], kinds, values[:, :0], hole).shape == (2, 0, 3, 8, 9)
