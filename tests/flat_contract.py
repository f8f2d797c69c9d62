"""What every backend's flat-vector ops promise, whoever computes them: against float64 formulas."""

import pytest
import torch
from compare import assert_close
from tolerances import ROUNDING_32

from fastmtt.ops import reference

# one number; one chunk; odd, and several chunks of either kind
SHAPES = [(1, 1), (3, 37), (2, 9001)]
OPS = {
    "sgd_update": (0.3,),
    "dot": (),
    "sqdist": (None,),
    "gsam_perturb": (0.05, True),
    "gsam_combine": (0.4,),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def truth(op, *args):
    wide = [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
    return getattr(reference, op)(*wide)


class FlatOps:
    """A subclass has run(op, *args, into=None) and may work in another precision."""

    dtype = torch.float32
    rounding = ROUNDING_32

    def vectors(self, shape, seed=0):
        """Two [S,P] of rows that lie apart and begin anywhere."""
        make = torch.Generator().manual_seed(seed)
        long = torch.randn(2, shape[0], shape[1] + 6, generator=make, dtype=self.dtype).to(DEVICE)
        return long[0, :, 3:-3], long[1, :, 5:-1]

    def tail(self, op, students):
        if op == "sgd_update":
            return (torch.linspace(0.1, 0.5, students, device=DEVICE, dtype=self.dtype),)
        return OPS[op]

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("op", OPS)
    def test_every_op_agrees_with_float64(self, op, shape):
        args = (*self.vectors(shape), *self.tail(op, shape[0]))
        want = truth(op, *args)
        apart = torch.full((2, *want.shape), torch.nan, device=DEVICE, dtype=self.dtype)
        place = apart.transpose(0, 1).contiguous()[:, 1] if want.dim() == 2 else apart[1]
        got = self.run(op, *args, into=[place, torch.empty(0)])
        assert got is place and torch.equal(self.run(op, *args), got)
        if op != "dot":
            return assert_close(got, want, 3 * self.rounding)
        # a sum whose terms cancel is as good as its terms are large
        size = (args[0] * args[1]).abs().double().sum(-1)
        assert ((got - want).abs() <= 3 * self.rounding * size).all()

    def test_one_rate_for_all_and_no_adaptation(self):
        theta, g = self.vectors((3, 37))
        rate = torch.tensor(0.3, device=DEVICE, dtype=self.dtype)
        assert_close(self.run("sgd_update", theta, g, rate), theta - 0.3 * g, ROUNDING_32)
        plain = theta, g, 0.05, False
        assert_close(self.run("gsam_perturb", *plain), truth("gsam_perturb", *plain), ROUNDING_32)

    def momentum(self, shape):
        """The arguments of sgd_momentum: rows that lie apart, a rate of each."""
        vectors = (*self.vectors(shape), self.vectors(shape, seed=1)[0])
        return (*vectors, *self.tail("sgd_update", shape[0]), 0.9, 0.05)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_sgd_momentum_agrees_with_float64(self, shape):
        args = self.momentum(shape)
        apart = torch.full((shape[0], 4, shape[1]), torch.nan, device=DEVICE, dtype=self.dtype)
        places = [apart[:, 0], apart[:, 2]]
        got = self.run("sgd_momentum", *args, into=places)
        fresh = self.run("sgd_momentum", *args)
        for result, place, other, want in zip(
            got, places, fresh, truth("sgd_momentum", *args), strict=True
        ):
            assert result is place and torch.equal(other, result)
            assert_close(result, want, 3 * self.rounding)
        assert apart[:, 1::2].isnan().all()

    def test_no_bit_of_sgd_momentum_depends_on_company_or_place(self):
        theta, g, velocity, rates, *rest = self.momentum((3, 9001))
        want = self.run("sgd_momentum", theta, g, velocity, rates, *rest)
        theta, velocity = theta.clone(), velocity.clone()
        columns = g.T.contiguous().T
        for s in range(3):
            one = slice(s, s + 1)
            alone = self.run("sgd_momentum", theta[one], g[one], velocity[one], rates[one], *rest)
            assert all(torch.equal(a, w[one]) for a, w in zip(alone, want, strict=True))
        args = theta, columns, velocity, rates, *rest
        self.run("sgd_momentum", *args, into=[theta, velocity])
        assert torch.equal(theta, want[0]) and torch.equal(velocity, want[1])
        args = theta, g, velocity, rates[0], *rest
        for result, wide in zip(
            self.run("sgd_momentum", *args), truth("sgd_momentum", *args), strict=True
        ):
            assert_close(result, wide, 3 * self.rounding)

    @pytest.mark.parametrize("each", [True, False], ids=["SP", "P"])
    def test_sqdist_does_not_look_at_what_is_not_kept(self, each):
        theta, target = self.vectors((3, 5001))
        keep = torch.rand(theta.shape if each else theta.shape[1:]).to(DEVICE) < 0.5
        want = truth("sqdist", theta, target, keep)
        theta = torch.where(keep, theta, torch.nan)
        assert_close(self.run("sqdist", theta, target, keep), want, 3 * self.rounding)

    @pytest.mark.parametrize("op", OPS)
    def test_no_bit_depends_on_company_or_strides(self, op):
        a, b = self.vectors((3, 9001))
        whole = self.run(op, a, b, *self.tail(op, 3))
        columns = b.T.contiguous().T
        assert torch.equal(self.run(op, a.contiguous(), columns, *self.tail(op, 3)), whole)
        for s in range(3):
            one = slice(s, s + 1)
            rest = (self.tail(op, 3)[0][one],) if op == "sgd_update" else self.tail(op, 3)
            assert torch.equal(self.run(op, a[one], b[one], *rest), whole[one])
        shared = self.run(op, a[:1].expand(3, -1), b, *self.tail(op, 3))
        assert torch.equal(shared[:1], whole[:1])

    @pytest.mark.parametrize("op", ["sgd_update", "gsam_perturb", "gsam_combine"])
    def test_vectors_may_be_written_over(self, op):
        a, b = self.vectors((2, 9001))
        want = self.run(op, a, b, *self.tail(op, 2))
        for i in (0, 1):
            pair = [a.clone(), b.clone()]
            assert self.run(op, *pair, *self.tail(op, 2), into=[pair[i]]) is pair[i]
            assert torch.equal(pair[i], want)

    def test_gsam_at_its_ends(self):
        theta, g = self.vectors((2, 37))
        assert torch.equal(self.run("gsam_perturb", theta, g, 0.0, True), theta)
        still = self.run("gsam_perturb", theta, torch.zeros_like(g), 0.05, True)
        assert torch.equal(still, theta)
        assert torch.equal(self.run("gsam_combine", theta, g, 0.0), g)

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
    @pytest.mark.parametrize("op", OPS)
    def test_nothing_to_do(self, op, shape):
        a = torch.empty(shape, device=DEVICE, dtype=self.dtype)
        got = self.run(op, a, a, *self.tail(op, shape[0]))
        want = truth(op, a, a, *self.tail(op, shape[0])) if shape[0] else torch.empty_like(got)
        assert got.shape == want.shape and got.count_nonzero() == 0
