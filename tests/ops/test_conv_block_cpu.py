"""The compiled ConvNet block against the reference, which is plain torch."""

import itertools
import statistics

import pytest
import torch
from tolerances import FORMULA, REPLAYED_MASKS_32, TIMES_BF16_ROUNDING, TIMES_TORCH

from fastmtt.ops import reference, reference_block

# (S, B, H, W, Cin, Cout): one image and several; odd sizes; channels short of and past a block of
# 64, no multiple of 8; more images than one chunk holds.
SHAPES = [
    (1, 1, 4, 4, 3, 5),
    (1, 4, 8, 8, 16, 64),
    (3, 2, 7, 6, 3, 12),
    (2, 3, 6, 9, 5, 70),
    (1, 3, 2, 2, 1, 1),
    (1, 1, 2, 2, 2, 1),
    (2, 2, 3, 2, 1, 2),
    (2, 6, 32, 32, 2, 128),
    (2, 3, 9, 7, 24, 40),
    (1, 30, 16, 16, 32, 48),
]

pytestmark = pytest.mark.usefixtures("extension")


def compiled(op):
    return getattr(torch.ops.fastmtt, op)


def flat_slices(flat, *shapes):
    """Views [S, *shape] of a flat matrix [S,P]: contiguous only within a student."""
    parts = flat[:, 1:].split([torch.Size(shape).numel() for shape in shapes], 1)
    return [part.view(len(flat), *shape) for part, shape in zip(parts, shapes, strict=True)]


def arguments(shape, seed=0, dtype=torch.float64):
    """Every argument by name; xhat, rstd and their tangents by the reference, in float64."""
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
    for name in ("xhat", "rstd", "xhat_dot", "rstd_dot"):
        values[name] = wide[name].to(dtype)
    return values


def pick(values, names):
    return [values[name] for name in names.split()]


def calls(v, needs_backward=(True, True), needs_tangent=(True, True, True)):
    """The arguments of each op, in the order of its schema; the jvp with and without options."""
    dots = "w w_dot gamma gamma_dot beta"
    tail = "xhat rstd xhat_dot rstd_dot"
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
            [*pick(v, "gp gp_dot a"), None, *pick(v, f"{dots} {tail}"), needs_tangent],
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
        assert g.shape == w.shape and g.dtype == w.dtype and g.is_contiguous()
        assert error(g, w.double()) <= tolerance


@pytest.mark.parametrize("shape", SHAPES)
def test_float64_agrees_with_the_reference(shape):
    for op, args in calls(arguments(shape)):
        assert_equal_results(compiled(op)(*args), getattr(reference, op)(*args), FORMULA)


@pytest.mark.parametrize("shape", [SHAPES[3], (1, 2, 32, 32, 8, 64)])
def test_float32_is_as_close_to_float64_as_the_reference_is(shape):
    """Median over seeds, at most twice the reference's error, with float32's masks throughout."""
    ratios = {}
    for seed in range(5):
        narrow = arguments(shape, seed, torch.float32)
        wide = {name: value.double() for name, value in narrow.items()}
        pairs = zip(calls(narrow), calls(wide), strict=True)
        for index, ((op, args), (_, wide_args)) in enumerate(pairs):
            function = getattr(reference, op)
            with reference_block.recorded_masks() as masks:
                own = function(*args)
            with reference_block.replayed_masks(masks):
                truth = function(*wide_args)
            for i, (g, o, t) in enumerate(zip(compiled(op)(*args), own, truth, strict=True)):
                if t.numel():
                    ratio = error(g, t) / max(error(o, t), torch.finfo(torch.float32).eps / 4)
                    ratios.setdefault((op, index, i), []).append(ratio)
    worst = {key: statistics.median(values) for key, values in ratios.items()}
    assert max(worst.values()) <= TIMES_TORCH, worst


@pytest.mark.parametrize("shape", [SHAPES[1], (2, 3, 9, 7, 24, 40), (1, 2, 16, 16, 128, 128)])
def test_winograd_in_float32_with_the_same_masks(shape):
    """From 16 input channels on: absolute, for few channels hide less of the transforms' rounding
    than a network's do; tests/test_precision.py judges the meta-gradient."""
    narrow = arguments(shape, dtype=torch.float32)
    wide = {name: value.double() for name, value in narrow.items()}
    for (op, args), (_, wide_args) in zip(calls(narrow), calls(wide), strict=True):
        with reference_block.recorded_masks() as masks:
            getattr(reference, op)(*args)
        with reference_block.replayed_masks(masks):
            truth = getattr(reference, op)(*wide_args)
        for got, want in zip(compiled(op)(*args), truth, strict=True):
            assert error(got, want) <= REPLAYED_MASKS_32


def away_from_the_kink(shape):
    """float32 arguments with beta at 8 or -8: no ReLU can flip."""
    v = arguments(shape, dtype=torch.float32)
    v["beta"] = 8 * v["beta"].sign()
    v["gamma"] = v["gamma"].clamp(-1.5, 1.5)
    return v


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[9], (2, 3, 9, 7, 24, 40)])
def test_bf16_errs_as_bfloat16_does(shape):
    """In norm, by what the reference's rounding costs; tests/test_precision.py judges the
    meta-gradient."""
    narrow = away_from_the_kink(shape)
    wide = {name: value.double() for name, value in narrow.items()}
    for (op, args), (_, wide_args) in zip(calls(narrow), calls(wide), strict=True):
        rounded, truth = getattr(reference, op)(*args, True), getattr(reference, op)(*wide_args)
        for got, own, want in zip(compiled(op)(*args, True), rounded, truth, strict=True):
            off, allowed = (got - want).norm(), TIMES_BF16_ROUNDING * (own - want).norm()
            assert off <= allowed + REPLAYED_MASKS_32 * want.norm(), (op, off / allowed)


@pytest.mark.parametrize("channels", [3, 15, 16])
def test_bf16_leaves_convolutions_of_few_channels_in_float32(channels):
    v = away_from_the_kink((1, 2, 6, 6, channels, 20))
    for op, args in calls(v):
        for function in (compiled(op), getattr(reference, op)):
            pairs = zip(function(*args, True), function(*args), strict=True)
            equal = all(torch.equal(rounded, full) for rounded, full in pairs)
            assert equal == (channels < 16), (op, function)


def test_float32_agrees_with_float64_where_no_relu_is_near_its_kink():
    """Absolute, not by the reference: beta = 8 or -8 keeps every ReLU on one side."""
    v = away_from_the_kink((2, 3, 16, 16, 8, 24))
    wide = {name: value.double() for name, value in v.items()}
    for (op, args), (_, wide_args) in zip(calls(v), calls(wide), strict=True):
        for g, t in zip(compiled(op)(*args), getattr(reference, op)(*wide_args), strict=True):
            assert error(g, t) <= REPLAYED_MASKS_32


def test_statistics_of_a_far_off_mean_are_not_cancelled():
    """E[x^2] - E[x]^2 would lose the variance altogether."""
    a = torch.full((1, 1, 9, 9, 1), 1000.0)
    a += torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    w = torch.zeros(1, 3, 3, 1, 2)
    w[:, 1, 1] = 1.0  # the identity
    p, xhat, rstd = compiled("conv_block")(a, w, torch.ones(1, 2), torch.zeros(1, 2))
    want = 1 / (a.double().var(unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(rstd.double(), want.expand(1, 1, 2), rtol=1e-6)


@pytest.mark.parametrize("needs", [*itertools.product([False, True], repeat=3)])
def test_results_not_needed_come_back_empty(needs):
    need_a, need_parameters, need_third = needs
    wanted = need_a, need_parameters, need_parameters, need_parameters, need_third
    v = arguments((2, 3, 6, 5, 3, 12))
    for (op, some), (_, all_) in zip(calls(v, needs[:2], needs), calls(v), strict=True):
        if "backward" not in op:
            continue
        results = zip(compiled(op)(*some), compiled(op)(*all_), wanted, strict=False)
        for got, full, want in results:
            assert error(got, full) <= FORMULA if want else got.shape == (0,)


def test_arguments_are_left_as_they_are():
    v = arguments((2, 3, 6, 5, 3, 12))
    before = {name: value.clone() for name, value in v.items()}
    for op, args in calls(v):
        compiled(op)(*args)
    assert all(torch.equal(v[name], before[name]) for name in v)


def test_strided_arguments():
    """Activations that are views of others, and weights whose inner strides are not dense."""
    v = arguments((2, 3, 6, 6, 3, 12))

    def strided(t):
        return t.repeat_interleave(2, -1)[..., ::2]

    views = {name: strided(value) for name, value in v.items()}
    assert not views["w"].is_contiguous() and not views["a"].is_contiguous()
    for (op, args), (_, plain) in zip(calls(views), calls(v), strict=True):
        assert_equal_results(compiled(op)(*args), compiled(op)(*plain), 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [SHAPES[7], (1, 3, 7, 8, 16, 70)])
def test_recomputed_equals_given(shape, dtype):
    """The same bits whatever a tape kept."""
    v = arguments(shape, dtype=dtype)
    v["p"], v["xhat"], v["rstd"] = compiled("conv_block")(*pick(v, "a w gamma beta"))
    dots = "a a_dot w w_dot gamma gamma_dot beta"
    fresh = compiled("conv_block_jvp")(*pick(v, f"{dots} beta_dot"), None, None)
    given = compiled("conv_block_jvp")(*pick(v, f"{dots} beta_dot xhat rstd"))
    assert torch.equal(fresh[4], v["xhat"]) and torch.equal(fresh[5], v["rstd"])
    assert torch.equal(fresh[0], v["p"])
    for f, g in zip(fresh[:4], given[:4], strict=True):
        assert torch.equal(f, g)

    v["xhat_dot"], v["rstd_dot"] = fresh[2:4]
    tail = "xhat rstd xhat_dot rstd_dot"
    kept = compiled("conv_block_backward")(*pick(v, "gp a w gamma beta xhat rstd"), (True, True))
    again = compiled("conv_block_backward_jvp")(*pick(v, f"gp gp_dot {dots} {tail}"), [True] * 3)
    assert torch.equal(again[4], kept[0])


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(2, 20, 33, 32, 3, 64), (1, 15, 17, 16, 40, 72)])
def test_no_bit_depends_on_the_number_of_threads(shape, bf16):
    """Patches and Winograd, each over several chunks of images."""
    v = arguments(shape, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = [compiled(op)(*args, bf16) for op, args in calls(v)]
            results.append([result for each in found for result in each])
    finally:
        torch.set_num_threads(threads)
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two) and torch.equal(one, five)


def test_a_nan_is_not_hidden():
    v = arguments((1, 1, 4, 4, 3, 5))
    v["a"][0, 0, 1, 1, 1] = float("nan")
    assert compiled("conv_block")(*pick(v, "a w gamma beta"))[0].isnan().all()
    jvp = compiled("conv_block_jvp")(
        *pick(v, "a a_dot w w_dot gamma gamma_dot beta beta_dot"), None, None
    )
    assert jvp[0].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    for op, args in calls(arguments((2, 2, 5, 6, 3, 12), dtype=dtype)):
        torch.library.opcheck(compiled(op).default, tuple(args))


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
def test_wrong_arguments_are_named(name, wrong, sentence):
    v = arguments((2, 3, 6, 5, 3, 12))
    right = v[name]
    v[name] = wrong(right)
    hits = 0
    for op, args in calls(v):
        if not any(arg is v[name] for arg in args):
            continue
        hits += 1
        with pytest.raises(RuntimeError, match=f"fastmtt::{op}: .*{sentence}"):
            compiled(op)(*args)
    assert hits
