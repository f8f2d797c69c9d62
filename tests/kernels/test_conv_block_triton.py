"""The block and its tangent as Triton kernels against the reference."""

from functools import partial

import pytest
import torch
from compare import assert_close
from fastmtt.kernels import conv_block, conv_block_jvp, first_layer, precision
from tolerances import TF32

from fastmtt.ops import reference_block

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 2e-6  # of sums of at most 9 * 32 products and a norm in float32, a whole vector's

# S, B, H, W, Cin, Cout: one kernel or two, whole or partial groups of images, with and without
# tensor cores, odd edges
SHAPES = [
    (2, 3, 8, 8, 32, 32),
    (2, 1, 5, 7, 17, 8),
    (1, 1, 16, 16, 32, 17),
    (1, 2, 8, 8, 3, 17),
    (2, 1, 5, 7, 3, 32),
    (1, 3, 4, 2, 8, 40),  # more than 32 output channels: the tangent ends in halves
]


def arguments(shape, seed=0):
    """(a, w, gamma, beta) and their tangents; students of the parameters lie apart."""
    students, images, height, width, c_in, c_out = shape
    make = torch.Generator().manual_seed(seed)
    a, a_dot = torch.randn(2, students, images, height, width, c_in, generator=make).to(DEVICE)
    counts = [9 * c_in * c_out, c_out, c_out]
    primal, tangent = [a], [a_dot]
    for found in (primal, tangent):
        packed = torch.randn(students, sum(counts) + 3, generator=make).to(DEVICE)[:, 1:-2]
        w, gamma, beta = packed.split(counts, 1)
        found += [w.view(students, 3, 3, c_in, c_out), gamma, beta]
    return primal, tangent


def interleaved(primal, tangent, moves=True):
    pairs = zip(primal, tangent, strict=True)
    together = [t for pair in pairs for t in pair]
    return together if moves else [together[0], None, *together[2:]]


def reference(op, args, bf16):
    """In float64; where bf16 rounds, in float32, for the reference rounds no other."""
    if bf16:
        return getattr(reference_block, op)(*args, True)
    return getattr(reference_block, op)(*(None if t is None else t.double() for t in args))


def assert_results(got, want, names):
    for g, r, name in zip(got, want, names.split(), strict=True):
        if r.numel() == 0:
            assert g.shape == (0,), name
        else:
            assert_close(g, r, ROUNDING, name)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_block(shape, bf16):
    args, _ = arguments(shape)
    want = reference("conv_block", args, bf16)
    assert_results(conv_block(*args, bf16), want, "p xhat rstd")


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_tangent(shape, given, moves):
    primal, tangent = arguments(shape)
    _, *known = conv_block(*primal) if given else (None, None, None)
    args = [*interleaved(primal, tangent, moves), *known]
    want = reference("conv_block_jvp", args, False)
    assert_results(conv_block_jvp(*args), want, "p p_dot xhat_dot rstd_dot xhat rstd")


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_tangent_in_bf16(shape):
    args = [*interleaved(*arguments(shape)), None, None]
    want = reference("conv_block_jvp", args, True)
    assert_results(conv_block_jvp(*args, True), want, "p p_dot xhat_dot rstd_dot xhat rstd")


FIRST_LAYERS = [*SHAPES[3:5], (1, 1, 34, 31, 1, 8), (2, 2, 8, 8, 4, 40)]


@pytest.mark.parametrize("shape", FIRST_LAYERS)
@pytest.mark.parametrize(("mode", "allowed"), [("ieee", 10 * ROUNDING), ("tf32", TF32)])
def test_statistics_of_patches_are_those_of_planes(shape, mode, allowed):
    """Images ten times brighter than they vary cost a digit, not the square of ten."""
    primal, tangent = arguments(shape)
    a, *weights = primal
    a += 10
    block = partial(first_layer.conv_block, first_layer.configs(shape[-1])[0], a, weights)
    p, xhat, rstd = want = reference("conv_block", primal, False)
    found = [torch.full_like(t, torch.nan, dtype=torch.float32) for t in want]
    block(found, mode)
    for got, truth in zip(found, want, strict=True):
        assert_close(got, truth, allowed)
    for known in ((xhat.float(), rstd.float()), (None, None)):
        _, p_dot, xhat_dot, rstd_dot, *_ = reference(
            "conv_block_jvp", [*interleaved(primal, tangent, False), *known], False
        )
        wanted = p_dot, xhat_dot, rstd_dot
        dots = [torch.full_like(t, torch.nan, dtype=torch.float32) for t in wanted]
        block(found, mode, tangent[1:], dots, given=known[0] is not None)
        for got, truth in zip([*found, *dots], [*want, *wanted], strict=True):
            assert_close(got, truth, allowed)


def test_a_filter_that_sees_nothing_of_a_grey_image_has_a_variance():
    """What is left of it in float32 is rounding, which may fall below zero."""
    make = torch.Generator().manual_seed(0)
    grey = 300 * torch.randn(1, 4, 8, 8, 1, generator=make).expand(1, 4, 8, 8, 3)
    w = torch.randn(1, 3, 3, 3, 64, generator=make)
    w -= w.mean(3, keepdim=True)  # no sum over channels
    gamma, beta = torch.ones(1, 64), torch.zeros(1, 64)
    shapes = (1, 4, 4, 4, 64), (1, 4, 8, 8, 64), (1, 4, 64)
    found = [torch.full(shape, torch.nan, device=DEVICE) for shape in shapes]
    inputs = [t.contiguous().to(DEVICE) for t in (grey, w, gamma, beta)]
    config = first_layer.configs(64)[0]
    first_layer.conv_block(config, inputs[0], inputs[1:], found, "tf32")
    assert all(t.isfinite().all() for t in found)


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("shape", SHAPES[3:5])
def test_a_first_layer_in_tf32(shape, moves, monkeypatch):
    """Operands that are tf32 already are multiplied exactly: what is left is float32's rounding."""
    monkeypatch.setattr(precision, "of", lambda *_: "tf32")
    primal, tangent = arguments(shape)
    for t in (*primal[:2], *tangent[:2]):
        t.copy_(((t.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32))
    want = reference("conv_block", primal, False)
    found = conv_block(*primal)
    assert_results(found, want, "p xhat rstd")
    for known in ((None, None), found[1:]):
        args = [*interleaved(primal, tangent, moves), *known]
        want = reference("conv_block_jvp", args, False)
        assert_results(conv_block_jvp(*args), want, "p p_dot xhat_dot rstd_dot xhat rstd")


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_results_go_where_they_are_wanted(shape):
    primal, tangent = arguments(shape)
    room = torch.empty(1000, dtype=torch.uint8, device=DEVICE)
    fresh = conv_block(*primal)
    places = [torch.full_like(t, torch.nan) for t in fresh]
    found = conv_block(*primal, into=(*places, room))
    assert [t.data_ptr() for t in found] == [t.data_ptr() for t in places]
    assert all(torch.equal(*pair) for pair in zip(found, fresh, strict=True))

    args = [*interleaved(primal, tangent), *fresh[1:]]
    fresh = conv_block_jvp(*args)
    places = [torch.full_like(t, torch.nan) for t in fresh[:4]]
    nothing = [torch.empty(0, device=DEVICE), torch.full((3,), 7.0, device=DEVICE)]
    found = conv_block_jvp(*args, into=(*places, *nothing, room))
    assert [t.data_ptr() for t in found[:4]] == [t.data_ptr() for t in places]
    assert all(torch.equal(*pair) for pair in zip(found[:4], fresh[:4], strict=True))
    assert (nothing[1] == 7).all()


def test_a_result_that_does_not_fit_is_named():
    args, _ = arguments(SHAPES[1])
    p, xhat, rstd = conv_block(*args)
    for wrong in (xhat[:1], xhat.double(), xhat.transpose(2, 3).contiguous().transpose(2, 3)):
        with pytest.raises(RuntimeError, match="result must be a contiguous torch.float32.*got"):
            conv_block(*args, into=(p, wrong, rstd))
