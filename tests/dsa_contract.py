"""What every GPU backend's DSA promises, whoever computes it: against the reference in float64."""

import pytest
import torch
from compare import assert_close
from tolerances import SAMPLED_POSITIONS_32

from fastmtt.ops import reference
from fastmtt.ops.reference_dsa import KINDS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = ["dsa", "dsa_transpose"]
# (S, B, C, H, W): odd sizes; one row; one column of many channels.
SHAPES = [(2, 2, 3, 19, 17), (1, 2, 1, 1, 6), (1, 2, 9, 7, 1)]

EVERY = pytest.mark.parametrize("kind", range(7), ids=KINDS)
EACH = pytest.mark.parametrize("shape", SHAPES, ids=str)
EITHER = pytest.mark.parametrize("op", OPS)


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


def truth(op, x, *rest):
    return getattr(reference, op)(x.double(), *rest)


@pytest.mark.filterwarnings("ignore:.*affine_grid:UserWarning")  # the reference's, of one pixel
class DsaOps:
    """A subclass has run(op, *args, into=None) and may work in another precision."""

    dtype = torch.float32
    tolerance = SAMPLED_POSITIONS_32

    def images(self, shape, seed=0):
        make = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=make, dtype=self.dtype).to(DEVICE)

    def arguments(self, shape, kind):
        kinds = torch.full(shape[:1], kind, device=DEVICE)
        return self.images(shape), kinds, drawn(kind, *shape[:2]), 0.5

    def mixed(self, shape):
        """Every kind in one call, a student each."""
        values = torch.cat([drawn(kind, 1, shape[1]) for kind in range(7)])
        return self.images((7, *shape[1:])), torch.arange(7, device=DEVICE), values, 0.5

    @EVERY
    @EACH
    @EITHER
    def test_every_map_agrees_with_float64(self, op, shape, kind):
        self.agrees(op, shape, kind)

    def agrees(self, op, shape, kind):
        args = self.arguments(shape, kind)
        place = torch.full_like(args[0], torch.nan)
        assert self.run(op, *args, into=[place, torch.empty(3)]) is place
        assert torch.equal(self.run(op, *args), place)
        want = truth(op, *args)
        if KINDS[kind] in ("none", "crop", "cutout", "flip"):
            assert torch.equal(place.double(), want)
        else:
            assert_close(place, want, self.tolerance)

    @EVERY
    @EACH
    def test_transposes_are_exact_adjoints(self, shape, kind):
        """<A x, g> = <x, A^T g>; brightness is added and no part of A."""
        x, *rest = self.arguments(shape, kind)
        g = self.images(shape, seed=9)
        moved = self.run("dsa", x, *rest) - self.run("dsa", torch.zeros_like(x), *rest)
        there = (moved.double() * g).sum()
        back = (self.run("dsa_transpose", g, *rest).double() * x).sum()
        assert (there - back).abs() <= self.tolerance * x.norm() * g.norm()

    @EITHER
    def test_no_bit_depends_on_company_or_strides(self, op):
        x, kinds, values, hole = self.mixed((7, 2, 3, 8, 9))
        whole = self.run(op, x, kinds, values, hole)
        assert_close(whole, truth(op, x, kinds, values, hole), self.tolerance)
        for s in range(7):
            one = slice(s, s + 1)
            alone = self.run(op, x[one, 1:], kinds[one], values[one, 1:], hole)
            assert torch.equal(alone, whole[one, 1:])
        last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        every_other = values.repeat_interleave(2, 1)[:, ::2]
        apart = torch.full((7, 2, *x.shape[1:]), torch.nan, device=DEVICE, dtype=self.dtype)[:, 1]
        assert torch.equal(self.run(op, last, kinds, every_other, hole, into=[apart]), whole)
        shared = x[:1].expand(7, -1, -1, -1, -1)
        many = self.run(op, shared, kinds, values, hole)
        assert torch.equal(many, self.run(op, shared.contiguous(), kinds, values, hole))

    @EITHER
    @pytest.mark.parametrize(
        ("kind", "value"),
        [(5, 0.0), (5, 0.04), (5, 0.4), (5, -3.0), (6, 0.8), (6, torch.pi / 2), (6, 3.0)],
    )
    def test_factors_and_angles_beyond_the_draws(self, op, kind, value):
        x, kinds, values, hole = self.arguments((1, 1, 2, 9, 7), kind)
        args = x, kinds, torch.full_like(values, value), hole
        assert_close(self.run(op, *args), truth(op, *args), self.tolerance)

    @EVERY
    @EITHER
    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30])
    @pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # Triton's interpreter's
    def test_values_out_of_all_bounds_stay_within_memory(self, op, kind, value):
        x, kinds, values, hole = self.arguments((1, 1, 2, 5, 6), kind)
        got = self.run(op, x, kinds, torch.full_like(values, value), hole)
        if KINDS[kind] == "crop":
            assert got.count_nonzero() == 0
        if KINDS[kind] in ("none", "cutout"):
            assert torch.equal(got, x)

    @pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
    def test_holes_of_any_size_and_centre(self, ratio):
        hole = int(ratio * 7 + 0.5)
        centres = torch.cartesian_prod(*[torch.arange(8 - hole % 2)] * 2).float().to(DEVICE)
        values = torch.nn.functional.pad(centres, (0, 1))[None]
        x = torch.ones(1, len(centres), 1, 7, 7, device=DEVICE, dtype=self.dtype)
        args = x, torch.tensor([KINDS.index("cutout")], device=DEVICE), values, ratio
        assert torch.equal(self.run("dsa", *args).double(), truth("dsa", *args))

    @EITHER
    def test_a_kind_that_is_not_known_shows(self, op):
        x, _, values, hole = self.arguments((3, 1, 1, 4, 5), 0)
        got = self.run(op, x, torch.tensor([0, 7, -1], device=DEVICE), values, hole)
        assert torch.equal(got[0], x[0]) and got[1:].isnan().all()

    @EITHER
    def test_no_images_are_no_work(self, op):
        x, kinds, values, hole = self.arguments((2, 3, 1, 4, 5), 2)
        assert self.run(op, x[:, :0], kinds, values[:, :0], hole).shape == (2, 0, 1, 4, 5)
