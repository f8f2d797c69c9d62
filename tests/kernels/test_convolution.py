"""Triton's convolutions against torch's in float64."""

import pytest
import torch
from compare import assert_close
from fastmtt.kernels.convolution import convolve, convolve_tangent
from fastmtt.kernels.precision import of
from fastmtt.kernels.weights import laid_out

from fastmtt.ops.reference_block import _rounded

SHAPES = [(2, 3, 5, 7, 3, 17), (1, 1, 4, 4, 17, 3), (2, 1, 8, 8, 32, 32)]  # S, B, H, W, Cin, Cout
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 1e-6  # of a float32 sum of at most 9 * 32 products, a whole vector's
ROUNDING_TF32 = 5e-4  # of one operand rounded to 11 bits, the most the interpreter rounds


def samples(shape, seed=0):
    """a, a_dot, w, w_dot, gz; students of w lie apart, as in packed weights."""
    students, images, height, width, c_in, c_out = shape
    make = torch.Generator().manual_seed(seed)
    a, a_dot = torch.randn(2, students, images, height, width, c_in, generator=make)
    gz, gz_dot = torch.randn(2, students, images, height, width, c_out, generator=make)
    count = 9 * c_in * c_out
    packed = torch.randn(students, 2 * count + 5, generator=make).to(DEVICE)
    w, w_dot = (packed[:, i : i + count].view(students, 3, 3, c_in, c_out) for i in (1, count + 3))
    return [t.to(DEVICE) for t in (a, a_dot, w, w_dot, gz, gz_dot)]


def truth(a, w):
    """The convolution in float64, student by student."""
    return torch.stack(
        [
            torch.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), padding=1)
            for x, k in zip(a.double(), w.double(), strict=True)
        ]
    ).permute(0, 1, 3, 4, 2)


def truth_transposed(gz, w):
    """The input gradient in float64."""
    like = torch.zeros(*gz.shape[:-1], w.shape[3], dtype=torch.float64, device=DEVICE)
    like.requires_grad_()
    return torch.autograd.grad(truth(like, w), like, gz.double())[0]


def unwritten(*shape):
    return torch.full(shape, torch.nan, device=DEVICE)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_input_gradient(shape):
    a, _, w, _, gz, _ = samples(shape)
    z, ga = unwritten(*gz.shape), unwritten(*a.shape)
    convolve(a, w, z, "ieee")
    convolve(gz, w, ga, "ieee", transposed=True)
    assert_close(z, truth(a, w), ROUNDING, "z")
    assert_close(ga, truth_transposed(gz, w), ROUNDING, "ga")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("primal", [True, False])
def test_tangents(shape, moves, primal):
    a, a_dot, w, w_dot, _, _ = samples(shape)
    want = truth(a, w_dot) + (truth(a_dot, w) if moves else 0)
    z, z_dot = unwritten(*want.shape), unwritten(*want.shape)
    convolve_tangent(a, a_dot if moves else None, w, w_dot, z if primal else None, z_dot, "ieee")
    assert_close(z_dot, want, ROUNDING, "z_dot")
    if primal:
        assert_close(z, truth(a, w), ROUNDING, "z")
    else:
        assert z.isnan().all()


def test_tangent_of_the_input_gradient():
    a, _, w, w_dot, gz, gz_dot = samples(SHAPES[0])
    ga, ga_dot = unwritten(*a.shape), unwritten(*a.shape)
    convolve_tangent(gz, gz_dot, w, w_dot, ga, ga_dot, "ieee", transposed=True)
    want = truth_transposed(gz, w_dot) + truth_transposed(gz_dot, w)
    assert_close(ga_dot, want, ROUNDING, "ga_dot")
    assert_close(ga, truth_transposed(gz, w), ROUNDING, "ga")


@pytest.mark.parametrize("given_rounded", [True, False])
def test_bf16_rounds_what_is_multiplied_and_nothing_else(given_rounded):
    a, _, w, _, gz, _ = samples(SHAPES[2])
    z, ga = unwritten(*gz.shape), unwritten(*a.shape)
    a32, w32, gz32 = _rounded(True, a, w, gz)
    cast = (lambda t: t.to(torch.bfloat16)) if given_rounded else (lambda t: t)
    convolve(cast(a), w, z, "bf16")
    convolve(cast(gz), w, ga, "bf16", transposed=True)
    assert_close(z, truth(a32, w32), ROUNDING, "z")
    assert_close(ga, truth_transposed(gz32, w32), ROUNDING, "ga")


def test_tf32_rounds_weights_to_nearest():
    a, _, w, _, gz, _ = samples(SHAPES[2])
    z = unwritten(*gz.shape)
    convolve(a, w, z, "tf32")
    assert_close(z, truth(a, w), ROUNDING_TF32, "z")
    kept = laid_out([w], "tf32")[0]
    plain = laid_out([w], "ieee")[0]
    assert (kept.view(torch.int32) & 0x1FFF == 0).all()
    assert ((kept - plain).abs() <= plain.abs() * 2**-11).all()


def test_not_a_number_survives_rounding():
    w = torch.tensor([0x7FFFFFFF], dtype=torch.int32, device=DEVICE)
    w = w.view(torch.float32).expand(1, 3, 3, 1, 1)
    for precision in ("tf32", "bf16"):
        assert laid_out([w.contiguous()], precision).isnan().all()


def test_precision_follows_the_channels_and_the_device():
    a = torch.zeros(1)
    assert [of(a, channels, True) for channels in (15, 16)] == ["ieee", "bf16"]
    assert of(a, 128, False) == "ieee"
