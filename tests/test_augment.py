"""DSA's draws: distributions of the published constants, strategies, modes."""

import pytest
import torch
from compare import assert_close
from tolerances import FORMULA, MEAN_OF_4000

from fastmtt import DSA, FastmttError, draws
from fastmtt.augment import FULL
from fastmtt.ops.reference_dsa import KINDS

MANY = 4000


def drawn(name, shape=(3, 32, 32), **constants):
    """Values [MANY, 3] of one operation."""
    parameters = DSA(name, **constants).draw(draws.stream(0, "test"), MANY, shape)
    assert parameters.kind.tolist() == [[KINDS.index(name)]]
    assert parameters.values.dtype == torch.float32
    return parameters.values[0, 0]


def assert_uniform(column, low, high):
    assert column.min() >= low and column.max() <= high
    position = (column - low) / (high - low)
    assert abs(position.mean().item() - 0.5) < MEAN_OF_4000
    assert abs((position < 0.25).float().mean().item() - 0.25) < 2 * MEAN_OF_4000


def assert_integers(column, low, high):
    """Every integer of low..high comes equally often."""
    values, counts = column.unique(return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    expected = MANY / len(values)
    assert ((counts - expected).abs() < 6 * expected**0.5).all()


def test_color():
    values = drawn("color")
    assert_uniform(values[:, 0], -0.5, 0.5)
    assert_uniform(values[:, 1], 0.0, 2.0)
    assert_uniform(values[:, 2], 0.5, 1.5)


@pytest.mark.parametrize(
    ("size", "shift"), [((32, 32), (4, 4)), ((64, 28), (8, 4)), ((8, 9), (1, 1))]
)
def test_crop(size, shift):
    values = drawn("crop", (3, *size))
    for axis in (0, 1):
        assert_integers(values[:, axis], -shift[axis], shift[axis])


@pytest.mark.parametrize(("size", "last"), [((32, 32), (32, 32)), ((9, 10), (8, 9))])
def test_cutout_centre(size, last):
    """An even hole's centre may lie one past the last pixel: holes 16; 5 and 5."""
    values = drawn("cutout", (3, *size))
    for axis in (0, 1):
        assert_integers(values[:, axis], 0, last[axis])


def test_flip_scale_rotate():
    assert_integers(drawn("flip")[:, 0], 0, 1)
    for axis in (0, 1):
        assert_uniform(drawn("scale")[:, axis], 1 / 1.2, 1.2)
    angle = torch.pi * 15 / 180
    assert_uniform(drawn("rotate")[:, 0], -angle, angle)


def test_the_two_axes_are_drawn_apart():
    for name in ("crop", "cutout", "scale"):
        values = drawn(name)[:, :2].T
        assert abs(torch.corrcoef(values)[0, 1].item()) < 0.08


def test_constants_of_choice():
    assert drawn("flip", prob_flip=0.0).sum() == 0
    assert_uniform(drawn("scale", ratio_scale=2.0)[:, 0], 0.5, 2.0)
    assert_uniform(drawn("rotate", ratio_rotate=90.0)[:, 0], -torch.pi / 2, torch.pi / 2)
    assert_uniform(drawn("color", brightness=0.2)[:, 0], -0.1, 0.1)
    assert_uniform(drawn("color", saturation=1.0)[:, 1], 0.0, 1.0)
    assert_uniform(drawn("color", contrast=0.0)[:, 2], 0.0, 1.0)
    assert_integers(drawn("crop", ratio_crop_pad=0.25)[:, 0], -8, 8)
    cut = DSA("cutout", ratio_cutout=0.25)
    x = cut.apply(torch.ones(1, 1, 1, 8, 8), cut.draw(draws.stream(1, "t"), 1, (1, 8, 8)))
    assert 1 <= (x == 0).sum() <= 4


def test_one_operation_a_batch_each_as_often():
    dsa, rng = DSA(), draws.stream(0, "test")
    kinds = torch.stack([dsa.draw(rng, 1, (3, 8, 8)).kind for _ in range(1200)]).flatten()
    values, counts = kinds.unique(return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6]
    assert ((counts - 200).abs() < 6 * 200**0.5).all()


def test_mode_m_applies_all_in_order():
    dsa = DSA("crop_color_rotate", mode="M")
    parameters = dsa.draw(draws.stream(0, "test"), 4, (3, 8, 8))
    assert [KINDS[k] for k in parameters.kind[:, 0]] == ["crop", "color", "rotate"]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 3, 8, 8, generator=random, dtype=torch.float64).requires_grad_()
    one = x
    for row in range(3):
        single = type(parameters)(parameters.kind[row : row + 1], parameters.values[row : row + 1])
        one = dsa.apply(one, single)
    assert torch.equal(dsa.apply(x, parameters), one)
    g = torch.randn(x.shape, generator=random, dtype=torch.float64)
    assert_close(dsa.pull_back(g, parameters), torch.autograd.grad(one, x, g)[0], FORMULA)


@pytest.mark.parametrize("name", ["none", "None"])
def test_no_strategy_is_the_identity(name):
    dsa, x = DSA(name), torch.randn(2, 3, 1, 4, 4)
    parameters = dsa.stack([dsa.draw(draws.stream(0, "test", s), 3, (1, 4, 4)) for s in (0, 1)])
    assert torch.equal(dsa.apply(x, parameters), x)
    assert torch.equal(dsa.pull_back(x, parameters), x)


def test_stacked_students_keep_their_parameters():
    dsa = DSA()
    own = [dsa.draw(draws.stream(0, "test", s), 5, (3, 8, 8)) for s in range(4)]
    stacked, x = dsa.stack(own), torch.randn(4, 5, 3, 8, 8)
    together = dsa.apply(x, stacked)
    for s in range(4):
        assert torch.equal(together[s : s + 1], dsa.apply(x[s : s + 1], own[s]))


def test_default_strategy_is_the_published_one():
    assert FULL == "color_crop_cutout_flip_scale_rotate" and DSA().names == FULL.split("_")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(strategy="color_blur"), "augmentation 'blur' in strategy 'color_blur' is not known"),
        (dict(strategy=""), "augmentation '' .* known are color, crop.* or 'none'"),
        (dict(mode="X"), "augmentation mode must be 'S' or 'M', got 'X'"),
    ],
)
def test_unknown_strategies(arguments, message):
    with pytest.raises(FastmttError, match=message):
        DSA(**arguments)
