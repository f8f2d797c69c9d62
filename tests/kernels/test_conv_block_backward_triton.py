"""Triton's backward of the block and its tangent against the reference in float64."""

import itertools

import pytest
import torch
from compare import assert_close, relative_error
from fastmtt.kernels import precision
from fastmtt.kernels.conv_block_backward import conv_block_backward
from fastmtt.kernels.conv_block_backward_jvp import conv_block_backward_jvp
from tolerances import REPLAYED_MASKS_32, TF32

from fastmtt.ops import reference

# (S, B, H, W, Cin, Cout): the first layer's 3 channels; odd sizes; more pixels than one tile holds
SHAPES = [
    (1, 1, 4, 4, 3, 8),
    (2, 2, 5, 7, 3, 17),
    (3, 1, 5, 5, 17, 8),
    (1, 1, 10, 10, 32, 32),
    (1, 1, 34, 31, 1, 8),
]
LARGE = SHAPES[3:]  # takes the interpreter seconds
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RESULTS = ("ga", "gw", "ggamma", "gbeta")
TANGENTS = ("ga_dot", "gw_dot", "ggamma_dot", "gbeta_dot", "ga")


def apart(students, *shapes):
    """Views [students, *shape] of one flat NaN-filled matrix: contiguous only within a student."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    flat = torch.full((students, 1 + sum(sizes) + 2), torch.nan, device=DEVICE)
    parts = flat[:, 1:-2].split(sizes, 1)
    return [part.view(students, *shape) for part, shape in zip(parts, shapes, strict=True)]


def arguments(shape, margin=0.0, moves=True):
    """Every argument by name; xhat, rstd and their tangents as the reference makes them.

    With a ``margin`` beta is at its distance from zero, which keeps every ReLU on one side. The
    block's input has a tangent if it ``moves``.
    """
    students, images, height, width, cin, cout = shape
    make = torch.Generator().manual_seed(0)
    values = {}
    for dot in ("", "_dot"):
        packed = apart(students, (3, 3, cin, cout), (cout,), (cout,))
        for name, view in zip(("w", "gamma", "beta"), packed, strict=True):
            values[name + dot] = view.copy_(torch.randn(view.shape, generator=make))
        a = torch.randn(students, images, height, width, cin, generator=make)
        gp = torch.randn(students, images, height // 2, width // 2, cout, generator=make)
        values |= {"a" + dot: a.to(DEVICE), "gp" + dot: gp.to(DEVICE)}
    if not moves:
        values["a_dot"] = None
    if margin:
        values["beta"].copy_(margin * values["beta"].sign())
        values["gamma"].clamp_(-1.5, 1.5)
    _, values["xhat"], values["rstd"] = reference.conv_block(*pick(values, "a w gamma beta"))
    dots = "a a_dot w w_dot gamma gamma_dot beta beta_dot xhat rstd"
    found = reference.conv_block_jvp(*pick(values, dots))
    values["xhat_dot"], values["rstd_dot"] = found[2:4]
    return values


def pick(values, names):
    return [values[name] for name in names.split()]


def backward(values):
    return pick(values, "gp a w gamma beta xhat rstd")


def tangent(values):
    return pick(
        values, "gp gp_dot a a_dot w w_dot gamma gamma_dot beta xhat rstd xhat_dot rstd_dot"
    )


def wide(args):
    return [arg.double() if torch.is_tensor(arg) else arg for arg in args]


def nan_places(args, names):
    """A place for every result, with room behind them as :func:`backends.call` may hand on."""
    a, w = args[1 if len(args) == 7 else 2], args[2 if len(args) == 7 else 4]
    packed = dict(zip(("gw", "ggamma", "gbeta"), apart(len(w), *_parameters(w)), strict=True))
    places = [
        torch.full_like(a, torch.nan) if name[:2] == "ga" else packed[name.removesuffix("_dot")]
        for name in names
    ]
    return [*places, torch.zeros(64, dtype=torch.uint8, device=DEVICE)]


def _parameters(w):
    return (w.shape[1:], w.shape[-1:], w.shape[-1:])


def check(op, args, names, needs, again=True):
    """Results written into places against float64; fresh ones, made ``again``, the same bits."""
    truth = getattr(reference, op.__name__)(*wide(args), needs)
    places = nan_places(args, names)
    written = op(*args, needs, into=places)
    assert len(written) == len(names)
    for name, want, place, result in zip(names, truth, places, written, strict=False):
        assert result is place
        if want.shape == (0,):
            assert place.isnan().all(), f"{name} was not asked for"
        else:
            assert_close(place, want, REPLAYED_MASKS_32, name)
    if again:
        fresh = op(*args, needs)
        assert len(fresh) == len(names)
        for name, want, new, place in zip(names, truth, fresh, places, strict=False):
            assert torch.equal(new, want if want.shape == (0,) else place), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_everything_agrees_with_float64(shape):
    values, again = arguments(shape), shape not in LARGE
    check(conv_block_backward, backward(values), RESULTS, (True, True), again)
    check(conv_block_backward_jvp, tangent(values), TANGENTS, (True, True, True), again)


@pytest.mark.parametrize("cin", [3, 17])
def test_what_is_asked_for_agrees_with_float64_and_the_rest_is_left_alone(cin):
    still, moving = (arguments((1, 1, 3, 3, cin, 8), moves=moves) for moves in (False, True))
    for needs in itertools.product([True, False], repeat=2):
        check(conv_block_backward, backward(moving), RESULTS, needs)
    for values in (still, moving):
        for needs in itertools.product([True, False], repeat=3):
            check(conv_block_backward_jvp, tangent(values), TANGENTS, needs)


@pytest.mark.parametrize("shape", [(2, 1, 5, 7, 3, 17), (1, 2, 8, 8, 4, 32)], ids=str)
def test_a_first_layer_with_a_constant_or_moving_input(shape):
    """Without ga there is no gz, and patches are folded back into ga_dot."""
    for moves in (True, False):
        values = arguments(shape, moves=moves)
        check(conv_block_backward, backward(values), RESULTS, (False, True))
        check(conv_block_backward_jvp, tangent(values), TANGENTS, (True, True, False))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[4], (1, 2, 8, 8, 4, 40)], ids=str)
def test_a_first_layer_in_tf32_is_off_by_its_rounding(shape, monkeypatch):
    monkeypatch.setattr(precision, "of", lambda *_: "tf32")
    values = arguments(shape, moves=False)
    for op, args, needs in (
        (conv_block_backward, backward(values), (False, True)),
        (conv_block_backward_jvp, tangent(values), (True, True, False)),
    ):
        truth = getattr(reference, op.__name__)(*wide(args), needs)
        for got, want in zip(op(*args, needs), truth, strict=True):
            if want.numel():
                assert_close(got, want, TF32)


@pytest.mark.parametrize("shape", [(2, 2, 6, 6, 16, 20), (1, 3, 5, 7, 17, 32)], ids=str)
def test_bf16_rounds_what_the_reference_rounds(shape):
    """Both round the same operands; a gz on the edge of two bfloat16 may fall on either side.

    Sums in another order move gz by a float32 rounding, 2^-16 of a bfloat16's: a few elements in
    ten thousand then differ by 2^-8, which leaves a hundredth of bfloat16's error.
    """
    values = arguments(shape, margin=8.0)
    for op, args, needs in (
        (conv_block_backward, backward(values), (True, True)),
        (conv_block_backward_jvp, tangent(values), (True, True, True)),
    ):
        rounded = getattr(reference, op.__name__)(*args, needs, True)
        truth = getattr(reference, op.__name__)(*wide(args), needs)
        for got, own, want in zip(op(*args, needs, True), rounded, truth, strict=True):
            allowed = 0.05 * relative_error(own, want) + REPLAYED_MASKS_32
            assert_close(got, own, allowed)


def test_bf16_leaves_few_channels_in_float32():
    values = arguments((1, 2, 6, 6, 3, 20))
    for op, args, needs in (
        (conv_block_backward, backward(values), (True, True)),
        (conv_block_backward_jvp, tangent(values), (True, True, True)),
    ):
        pairs = zip(op(*args, needs, True), op(*args, needs), strict=True)
        assert all(torch.equal(rounded, full) for rounded, full in pairs)
