"""The weight gradient's kernel and the sum over its parts, against a float64 sum over taps."""

import pytest
import torch
from compare import assert_close
from fastmtt.kernels.tuning import Config
from fastmtt.kernels.weight_gradient import add_parts, weight_gradient
from tolerances import ROUNDING_32

# (S, B, H, W, Cin, Cout): one row of 27; odd sizes; several tiles, parts and taps a tile
SHAPES = [(1, 1, 4, 4, 3, 8), (2, 3, 5, 7, 17, 9), (1, 5, 8, 8, 32, 72), (2, 1, 3, 2, 128, 16)]
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def operands(shape, seed):
    students, images, height, width, cin, cout = shape
    make = torch.Generator().manual_seed(seed)
    a = torch.randn(students, images, height, width, cin, generator=make)
    return a.to(DEVICE), torch.randn(*a.shape[:4], cout, generator=make).to(DEVICE)


def formula(a, gz):
    """Tap by tap: the padded images, shifted, times the cotangents."""
    height, width = a.shape[2:4]
    padded = torch.nn.functional.pad(a.double(), (0, 0, 1, 1, 1, 1))
    taps = [
        torch.einsum("sbyxi,sbyxo->sio", padded[:, :, y : y + height, x : x + width], gz.double())
        for y in range(3)
        for x in range(3)
    ]
    return torch.stack(taps, 1).unflatten(1, (3, 3))


def apart(students, *shape):
    """NaN-filled [students, *shape], contiguous for each student, anywhere in memory."""
    size = torch.Size(shape).numel()
    flat = torch.full((students, size + 5), torch.nan, device=DEVICE)
    return flat[:, 3 : 3 + size].view(students, *shape)


def found(pairs, precision):
    (students, images, *_, cin), cout = pairs[0][0].shape, pairs[0][1].shape[-1]
    gw = apart(students, 3, 3, cin, cout)
    norm_parts = [torch.randn(students, images, cout, device=DEVICE) for _ in range(2)]
    places = [apart(students, cout) for _ in range(2)]
    add_parts(weight_gradient(pairs, gw, precision), norm_parts, gw, *places)
    for part, place in zip(norm_parts, places, strict=True):
        assert_close(place, part.double().sum(1), 2 * ROUNDING_32)
    return gw


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_sums_over_all_pixels_of_one_pair_and_of_two(shape, count):
    pairs = [operands(shape, seed) for seed in range(count)]
    want = sum(formula(*pair) for pair in pairs)
    got = found(pairs, "ieee")
    assert_close(got, want, 5 * ROUNDING_32)  # random signs: hundreds of sums err by a few ulps
    if ON_GPU or shape == SHAPES[1]:  # the interpreter has one order of programs
        assert torch.equal(got, found(pairs, "ieee"))


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
def test_bfloat16_operands_are_multiplied_exactly_and_summed_in_full(shape):
    pairs = [tuple(x.bfloat16() for x in operands(shape, seed)) for seed in range(2)]
    assert_close(found(pairs, "bf16"), sum(formula(*p) for p in pairs), 5 * ROUNDING_32)


@pytest.mark.parametrize("sizes", [(32, 32, 16), (64, 16, 32), (128, 64, 16), (256, 32, 16)])
def test_every_tile_gives_the_same(sizes, monkeypatch):
    """Of part of a tap, of one and of several; the interpreter takes the first offered."""
    config = Config(dict(zip("MNK", sizes, strict=True)))
    monkeypatch.setattr("fastmtt.kernels.weight_gradient.configs", lambda *_: [config])
    pair = operands((1, 2, 4, 5, 64, 24), 0)
    assert_close(found([pair], "ieee"), formula(*pair), 5 * ROUNDING_32)
