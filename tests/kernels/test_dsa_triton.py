"""Triton's DSA against the reference in float64; its transposes as exact adjoints."""

from importlib import import_module

import pytest
import torch
from compare import assert_close

from fastmtt.ops import reference
from fastmtt.ops.reference_dsa import KINDS

kernels = import_module("fastmtt.kernels.dsa")  # the package's own dsa is the op
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = ["dsa", "dsa_transpose"]
# (S, B, C, H, W): odd sizes and several tiles; one row; one column of many channels.
SHAPES = [(2, 2, 3, 19, 17), (1, 2, 1, 1, 6), (1, 2, 9, 7, 1)]
# A sampled position of float32 errs by 2e-6 of a pixel here and weighs neighbours by its distance.
TOLERANCE = 1e-6

EVERY = pytest.mark.parametrize("kind", range(7), ids=KINDS)
EACH = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def drawn(kind, students, batch):
    """Values as DSA draws them."""
    u = torch.rand(students, batch, 3, generator=torch.Generator().manual_seed(kind))
    spread = {
        "color": torch.stack([u[..., 0] - 0.5, 2 * u[..., 1], u[..., 2] + 0.5], -1),
        "crop": (5 * u).floor() - 2,
        "cutout": (8 * u).floor(),
        "flip": (u < 0.5).float(),
        "scale": u * (1.2 - 1 / 1.2) + 1 / 1.2,
        "rotate": (u - 0.5) * torch.pi / 6,
    }
    return spread.get(KINDS[kind], torch.zeros_like(u)).to(DEVICE)


def arguments(shape, kind):
    kinds = torch.full(shape[:1], kind, device=DEVICE)
    return images(shape), kinds, drawn(kind, *shape[:2]), 0.5


def mixed(shape):
    """Every kind in one call, a student each."""
    batch = shape[1]
    values = torch.cat([drawn(kind, 1, batch) for kind in range(7)])
    return images((7, *shape[1:])), torch.arange(7, device=DEVICE), values, 0.5


def run(op, *args, into=None):
    return getattr(kernels, op)(*args, into=into)


def truth(op, x, *rest):
    return getattr(reference, op)(x.double(), *rest)


@pytest.mark.filterwarnings("ignore:.*affine_grid:UserWarning")  # the reference's, of one pixel
@EVERY
@EACH
@pytest.mark.parametrize("op", OPS)
def test_every_map_agrees_with_float64(op, shape, kind):
    args = arguments(shape, kind)
    place = torch.full(shape, torch.nan, device=DEVICE)
    assert run(op, *args, into=[place, torch.empty(3)]) is place
    want = truth(op, *args)
    if KINDS[kind] in ("none", "crop", "cutout", "flip"):
        assert torch.equal(place.double(), want)
    else:
        assert_close(place, want, TOLERANCE)


@EVERY
@EACH
def test_transposes_are_exact_adjoints(shape, kind):
    """<A x, g> = <x, A^T g>; brightness is added and no part of A."""
    x, *rest = arguments(shape, kind)
    g = images(shape, seed=9)
    moved = run("dsa", x, *rest) - run("dsa", torch.zeros_like(x), *rest)
    there = (moved.double() * g).sum()
    back = (run("dsa_transpose", g, *rest).double() * x).sum()
    assert (there - back).abs() <= TOLERANCE * x.norm() * g.norm()


@pytest.mark.parametrize("op", OPS)
def test_no_bit_depends_on_company_or_strides(op):
    x, kinds, values, hole = mixed((7, 2, 3, 8, 9))
    whole = run(op, x, kinds, values, hole)
    assert_close(whole, truth(op, x, kinds, values, hole), TOLERANCE)
    for s in range(7):
        one = slice(s, s + 1)
        alone = run(op, x[one, 1:], kinds[one], values[one, 1:], hole)
        assert torch.equal(alone, whole[one, 1:])
    last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    every_other = values.repeat_interleave(2, 1)[:, ::2]
    apart = torch.full((7, 2, *x.shape[1:]), torch.nan, device=DEVICE)[:, 1]
    assert torch.equal(run(op, last, kinds, every_other, hole, into=[apart]), whole)
    shared = x[:1].expand(7, -1, -1, -1, -1)
    assert torch.equal(
        run(op, shared, kinds, values, hole), run(op, shared.contiguous(), kinds, values, hole)
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("kind", "value"),
    [(5, 0.0), (5, 0.04), (5, 0.4), (5, -3.0), (6, 0.8), (6, torch.pi / 2), (6, 3.0)],
)
def test_factors_and_angles_beyond_the_draws(op, kind, value):
    x, kinds, values, hole = arguments((1, 1, 2, 9, 7), kind)
    args = x, kinds, torch.full_like(values, value), hole
    assert_close(run(op, *args), truth(op, *args), TOLERANCE)


@EVERY
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # the interpreter's numpy
def test_values_out_of_all_bounds_stay_within_memory(op, kind, value):
    x, kinds, values, hole = arguments((1, 1, 2, 5, 6), kind)
    got = run(op, x, kinds, torch.full_like(values, value), hole)
    if KINDS[kind] == "crop":
        assert got.count_nonzero() == 0
    if KINDS[kind] in ("none", "cutout"):
        assert torch.equal(got, x)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_holes_of_any_size_and_centre(ratio):
    hole = int(ratio * 7 + 0.5)
    centres = torch.cartesian_prod(*[torch.arange(8 - hole % 2)] * 2).float().to(DEVICE)
    values = torch.nn.functional.pad(centres, (0, 1))[None]
    x = torch.ones(1, len(centres), 1, 7, 7, device=DEVICE)
    args = x, torch.tensor([KINDS.index("cutout")], device=DEVICE), values, ratio
    assert torch.equal(run("dsa", *args), truth("dsa", *args).float())


@pytest.mark.parametrize("op", OPS)
def test_a_kind_that_is_not_known_shows(op):
    x, _, values, hole = arguments((3, 1, 1, 4, 5), 0)
    got = run(op, x, torch.tensor([0, 7, -1], device=DEVICE), values, hole)
    assert torch.equal(got[0], x[0]) and got[1:].isnan().all()


@pytest.mark.parametrize("op", OPS)
def test_what_is_refused_and_what_is_no_work(op):
    x, kinds, values, hole = arguments((2, 3, 1, 4, 5), 2)
    assert run(op, x[:, :0], kinds, values[:, :0], hole).shape == (2, 0, 1, 4, 5)
    for args, sentence in (
        ((x[0], kinds, values), r"images must be \[S,B,C,H,W\], got \[3, 1, 4, 5\]"),
        ((x, kinds[:1], values), r"kind must be int64 of shape \[2\]"),
        ((x, kinds.int(), values), r"kind must be int64 of shape \[2\], got torch.int32"),
        ((x, kinds, values[..., :2]), r"values must be torch.float32 of shape \[2, 3, 3\]"),
        ((x, kinds, values.double()), "values must be torch.float32"),
    ):
        with pytest.raises(RuntimeError, match=f"{op}: {sentence}"):
            run(op, *args, hole)
    with pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
        run(op, x, kinds, values, hole, into=[x.mT.contiguous().mT])
