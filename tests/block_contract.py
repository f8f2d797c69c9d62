"""What every backend's ConvNet block promises, whoever computes it: against the reference."""

import itertools

import pytest
import torch
from tolerances import FORMULA, REPLAYED_MASKS_32

from fastmtt.ops import reference

# (S, B, H, W, Cin, Cout): one image and several; odd sizes; channels short of and past a block of
# 64, no multiple of 8.
SHAPES = [
    (1, 1, 4, 4, 3, 5),
    (1, 4, 8, 8, 16, 64),
    (3, 2, 7, 6, 3, 12),
    (2, 3, 6, 9, 5, 70),
    (1, 3, 2, 2, 1, 1),
    (1, 1, 2, 2, 2, 1),
    (2, 2, 3, 2, 1, 2),
    (2, 3, 9, 7, 24, 40),
]
FLAGS = [*itertools.product([True, False], repeat=3)]


def flat_slices(flat, *shapes):
    """Views [S, *shape] of a flat matrix [S,P]: contiguous only within a student."""
    parts = flat[:, 1:].split([torch.Size(shape).numel() for shape in shapes], 1)
    return [part.view(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]


def arguments(shape, seed=0, dtype=torch.float64, device="cpu"):
    """Every argument by name; xhat, rstd and their tangents by the reference, in float64.

    Those named still are the tangents where the input has none.
    """
    s, b, h, w, c_in, c_out = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    values = {}
    for suffix in ("", "_dot"):
        flat = draw(s, 1 + 9 * c_in * c_out + 2 * c_out).to(dtype)
        parts = flat_slices(flat, (3, 3, c_in, c_out), (c_out,), (c_out,))
        values |= dict(zip([n + suffix for n in ("w", "gamma", "beta")], parts, strict=True))
        values["a" + suffix] = draw(s, b, h, w, c_in).to(dtype)
        values["gp" + suffix] = draw(s, b, h // 2, w // 2, c_out).to(dtype)
    wide = {name: value.double() for name, value in values.items()}
    _, wide["xhat"], wide["rstd"] = reference.conv_block(*pick(wide, "a w gamma beta"))
    wide["xhat_dot"], wide["rstd_dot"] = reference.conv_block_jvp(
        *pick(wide, "a a_dot w w_dot gamma gamma_dot beta beta_dot xhat rstd")
    )[2:4]
    still = pick(wide, "w w_dot gamma gamma_dot beta beta_dot xhat rstd")
    wide["still_dot"], wide["still_rstd_dot"] = reference.conv_block_jvp(wide["a"], None, *still)[
        2:4
    ]
    for name in ("xhat", "rstd", "xhat_dot", "rstd_dot", "still_dot", "still_rstd_dot"):
        values[name] = wide[name].to(dtype)
    return values


def pick(values, names):
    return [values[name] for name in names.split()]


def calls(v, needs_backward=(True, True), needs_tangent=(True, True, True)):
    """The arguments of each op, in the order of its schema; the jvp with and without options."""
    dots = "w w_dot gamma gamma_dot beta"
    tail, still = "xhat rstd xhat_dot rstd_dot", "xhat rstd still_dot still_rstd_dot"
    affine = "a w gamma beta"
    return [
        ("conv_block", pick(v, affine)),
        ("conv_block_backward", [*pick(v, f"gp {affine} xhat rstd"), needs_backward]),
        ("conv_block_jvp", pick(v, f"a a_dot {dots} beta_dot xhat rstd")),
        ("conv_block_jvp", [*pick(v, f"a a_dot {dots} beta_dot"), None, None]),
        ("conv_block_jvp", [v["a"], None, *pick(v, f"{dots} beta_dot xhat rstd")]),
        ("conv_block_backward_jvp", [*pick(v, f"gp gp_dot a a_dot {dots} {tail}"), needs_tangent]),
        (
            "conv_block_backward_jvp",
            [*pick(v, "gp gp_dot a"), None, *pick(v, f"{dots} {still}"), needs_tangent],
        ),
    ]


def error(got, want):
    """Largest difference, relative to the largest entry."""
    if want.numel() == 0:
        return 0.0
    return float((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-300))


def assert_equal_results(got, want, tolerance):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape and g.is_contiguous()
        assert error(g, w.double()) <= tolerance


def away_from_the_kink(shape):
    """float32 arguments with beta at 8 or -8: no ReLU can flip."""
    v = arguments(shape, dtype=torch.float32)
    v["beta"] = 8 * v["beta"].sign()
    v["gamma"] = v["gamma"].clamp(-1.5, 1.5)
    return v


def wide(args):
    return [a.double() if torch.is_tensor(a) else a for a in args]


class BlockOps:
    """A subclass has run(op, *args, into=None), and tensors on a device."""

    device = "cpu"
    unrounded = 0.0  # how far bf16 may be from float32 where nothing is rounded to bfloat16

    def arguments(self, shape, dtype=torch.float64):
        return self.here(arguments(shape, dtype=dtype))

    def here(self, values):
        """On the device; the students of parameters still apart, and beginning anywhere."""
        moved = {name: value.to(self.device) for name, value in values.items()}
        for name in ("w", "gamma", "beta", "w_dot", "gamma_dot", "beta_dot"):
            value = moved[name]
            room = value.new_empty(len(value), 1 + value[0].numel())
            moved[name] = room[:, 1:].view(value.shape).copy_(value)
        return moved

    def assert_agrees(self, v, tolerance):
        for op, args in calls(v):
            found = self.run(op, *args)
            assert {result.dtype for result in found} == {v["a"].dtype}
            assert_equal_results(found, getattr(reference, op)(*wide(args)), tolerance)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_float64_agrees_with_the_reference(self, shape):
        self.assert_agrees(self.arguments(shape), FORMULA)

    def test_float32_agrees_with_float64_where_no_relu_is_near_its_kink(self):
        """Absolute, not by the reference: beta = 8 or -8 keeps every ReLU on one side."""
        v = self.here(away_from_the_kink((2, 3, 16, 16, 8, 24)))
        self.assert_agrees(v, REPLAYED_MASKS_32)

    @pytest.mark.parametrize("channels", [3, 15, 16])
    def test_bf16_does_not_round_convolutions_of_few_channels(self, channels):
        v = self.here(away_from_the_kink((1, 2, 6, 6, channels, 20)))
        for op, args in calls(v):
            pairs = zip(self.run(op, *args, True), self.run(op, *args), strict=True)
            errors = [error(rounded, full.double()) for rounded, full in pairs]
            assert (max(errors) <= self.unrounded) == (channels < 16), (op, errors)

    def test_statistics_of_a_far_off_mean_are_not_cancelled(self):
        """E[x^2] - E[x]^2 would lose the variance altogether."""
        a = torch.full((1, 1, 9, 9, 1), 1000.0)
        a += torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
        w = torch.zeros(1, 3, 3, 1, 2)
        w[:, 1, 1] = 1.0  # the identity
        given = [t.to(self.device) for t in (a, w, torch.ones(1, 2), torch.zeros(1, 2))]
        p, xhat, rstd = self.run("conv_block", *given)
        want = 1 / (a.double().var(unbiased=False) + 1e-5).sqrt()
        assert torch.allclose(rstd.cpu().double(), want.expand(1, 1, 2), rtol=1e-6)

    @pytest.mark.parametrize("needs", FLAGS)
    def test_what_is_not_asked_for_is_empty_or_left_alone(self, needs):
        need_a, need_parameters, need_third = needs
        wanted = need_a, need_parameters, need_parameters, need_parameters, need_third
        v = self.arguments((2, 3, 6, 5, 3, 12))
        for (op, some), (_, all_) in zip(calls(v, needs[:2], needs), calls(v), strict=True):
            if "backward" not in op:
                continue
            everything = self.run(op, *all_)
            places = [torch.full_like(r, -1) for r in everything]
            self.run(op, *some, False, into=places)
            results = zip(self.run(op, *some), places, everything, wanted, strict=False)
            for got, place, full, want in results:
                assert error(got, full) <= FORMULA if want else got.shape == (0,)
                assert torch.equal(place, got if want else torch.full_like(full, -1))

    def test_arguments_are_left_as_they_are(self):
        v = self.arguments((2, 3, 6, 5, 3, 12))
        before = {name: value.clone() for name, value in v.items()}
        for op, args in calls(v):
            self.run(op, *args)
        assert all(torch.equal(v[name], before[name]) for name in v)

    def test_no_bit_depends_on_strides(self):
        """Activations that are views of others, and weights whose inner strides are not dense."""
        v = self.arguments((2, 3, 6, 6, 3, 12))
        views = {name: t.repeat_interleave(2, -1)[..., ::2] for name, t in v.items()}
        assert not views["w"].is_contiguous() and not views["a"].is_contiguous()
        for (op, args), (_, plain) in zip(calls(views), calls(v), strict=True):
            assert_equal_results(self.run(op, *args), self.run(op, *plain), 0.0)

    def test_no_bit_depends_on_company(self):
        v = self.arguments((2, 3, 6, 5, 3, 12))
        alone = {name: t[1:] for name, t in v.items()}
        for (op, args), (_, one) in zip(calls(v), calls(alone), strict=True):
            for both, got in zip(self.run(op, *args), self.run(op, *one), strict=True):
                assert torch.equal(both[1:], got) or both.shape == (0,), op

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", [(2, 1, 32, 32, 2, 36), (1, 3, 7, 8, 16, 70)])
    def test_recomputed_equals_given(self, shape, dtype):
        """The same bits whatever a tape kept."""
        v = self.arguments(shape, dtype)
        v["p"], v["xhat"], v["rstd"] = self.run("conv_block", *pick(v, "a w gamma beta"))
        dots = "a a_dot w w_dot gamma gamma_dot beta"
        fresh = self.run("conv_block_jvp", *pick(v, f"{dots} beta_dot"), None, None)
        given = self.run("conv_block_jvp", *pick(v, f"{dots} beta_dot xhat rstd"))
        assert torch.equal(fresh[4], v["xhat"]) and torch.equal(fresh[5], v["rstd"])
        assert torch.equal(fresh[0], v["p"])
        for f, g in zip(fresh[:4], given[:4], strict=True):
            assert torch.equal(f, g)

        v["xhat_dot"], v["rstd_dot"] = fresh[2:4]
        backward = pick(v, "gp a w gamma beta xhat rstd")
        kept = self.run("conv_block_backward", *backward, (True, True))
        tangent = pick(v, f"gp gp_dot {dots} xhat rstd xhat_dot rstd_dot")
        again = self.run("conv_block_backward_jvp", *tangent, [True] * 3)
        assert torch.equal(again[4], kept[0])

    def test_a_nan_is_not_hidden(self):
        v = self.arguments((1, 1, 4, 4, 3, 5))
        v["a"][0, 0, 1, 1, 1] = float("nan")
        p, _, rstd = self.run("conv_block", *pick(v, "a w gamma beta"))
        assert p.isnan().all() and rstd.isnan().all()
        everything = pick(v, "a a_dot w w_dot gamma gamma_dot beta beta_dot")
        assert self.run("conv_block_jvp", *everything, None, None)[0].isnan().all()

    @pytest.mark.parametrize(
        "name, wrong, sentence",
        [
            ("w", lambda t: t[:, :2], "w must have shape .2, 3, 3, 3, 12."),
            ("w", lambda t: t.float(), "w must have the dtype of a"),
            ("a", lambda t: t[0], "a must have shape .S, B, H, W, C., got .3, 6, 5, 3."),
            ("a", lambda t: t[:, :, :1], "2 x 2 pixels"),
            ("a", lambda t: t.half(), "a must be float32 or float64, got Half"),
            ("gamma", lambda t: t[:1], "gamma must have shape .2, 12.*got .1, 12."),
            ("beta", lambda t: t[:, :1], "beta must have shape .2, 12."),
            ("gp", lambda t: t[:, :, :2], "gp must have shape .2, 3, 3, 2, 12."),
            ("gp_dot", lambda t: t[..., 0], "gp_dot must have shape"),
            ("xhat", lambda t: t[:, :2], "xhat must have shape .2, 3, 6, 5, 12."),
            ("rstd", lambda t: t[0], "rstd must have shape .2, 3, 12."),
            ("xhat_dot", lambda t: t[:, :2], "xhat_dot must have shape"),
            ("rstd_dot", lambda t: t[0], "rstd_dot must have shape"),
            ("a_dot", lambda t: t[..., :1], "a_dot must have shape"),
            ("w_dot", lambda t: t[..., :1], "w_dot must have shape"),
            ("gamma_dot", lambda t: t[..., :1], "gamma_dot must have shape"),
            ("beta_dot", lambda t: t[..., :1], "beta_dot must have shape"),
        ],
    )
    def test_wrong_arguments_are_named(self, name, wrong, sentence):
        v = self.arguments((2, 3, 6, 5, 3, 12))
        v[name] = wrong(v[name])
        hits = 0
        for op, args in calls(v):
            if not any(arg is v[name] for arg in args):
                continue
            hits += 1
            with pytest.raises(RuntimeError, match=f"{op}: .*{sentence}"):
                self.run(op, *args)
        assert hits
