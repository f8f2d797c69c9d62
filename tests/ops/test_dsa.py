"""DSA's maps against the published formulas, their transposes against autograd."""

import published_dsa
import pytest
import torch
from compare import assert_close
from samples import dsa_values, normal
from tolerances import DRAWN_VALUES_32, FORMULA

from fastmtt import ops
from fastmtt.ops import reference
from fastmtt.ops.reference_dsa import KINDS

EVERY = pytest.mark.parametrize("kind", range(7), ids=KINDS)
SIZES = pytest.mark.parametrize("size", [(8, 8), (9, 7)], ids=str)


def images(size, students=2, batch=5):
    return normal(torch.Generator().manual_seed(1), students, batch, 3, *size)


@EVERY
@SIZES
def test_published_formula(kind, size):
    x, values = images(size), dsa_values(kind, 2, 5)
    got = ops.dsa(x, torch.tensor([kind, kind]), values, 0.5)
    want = [published_dsa.augment(i, kind, v.double()) for i, v in zip(x, values, strict=True)]
    assert_close(got, torch.stack(want), FORMULA)
    assert (kind == 0) == torch.equal(got, x)


@EVERY
@SIZES
def test_transpose_is_the_vector_jacobian_product(kind, size):
    x, values = images(size).requires_grad_(), dsa_values(kind, 2, 5)
    kinds, g = torch.tensor([kind, kind]), images(size).flip(1)
    want = torch.autograd.grad(reference.dsa(x, kinds, values, 0.5), x, g)[0]
    assert_close(ops.dsa_transpose(g, kinds, values, 0.5), want, FORMULA)


@EVERY
def test_float32_images(kind):
    x, values, kinds = images((8, 8)), dsa_values(kind, 2, 5), torch.tensor([kind, kind])
    single = ops.dsa(x.float(), kinds, values, 0.5)
    assert single.dtype == torch.float32
    assert_close(single, ops.dsa(x, kinds, values, 0.5), DRAWN_VALUES_32)


def test_students_have_kinds_of_their_own():
    x, values = images((8, 8), students=7), dsa_values(5, 7, 5)
    together = ops.dsa(x, torch.arange(7), values, 0.5)
    for kind in range(7):
        row = slice(kind, kind + 1)
        alone = ops.dsa(x[row], torch.tensor([kind]), values[row], 0.5)
        assert torch.equal(together[row], alone)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("size", [7, 8])
def test_cutout_of_any_size_and_centre(ratio, size):
    hole = int(ratio * size + 0.5)
    centres = torch.cartesian_prod(*[torch.arange(size + 1 - hole % 2)] * 2).float()
    values = torch.cat([centres, torch.zeros(len(centres), 1)], 1)
    x = torch.ones(len(centres), 1, size, size, dtype=torch.float64)
    got = ops.dsa(x[None], torch.tensor([published_dsa.CUTOUT]), values[None], ratio)[0]
    want = published_dsa.augment(x, published_dsa.CUTOUT, values, ratio)
    assert torch.equal(got, want)


def test_a_shift_by_the_whole_image_leaves_nothing():
    x = torch.ones(1, 1, 1, 4, 4)
    values = torch.tensor([[[4.0, 0.0, 0.0]]])
    assert ops.dsa(x, torch.tensor([published_dsa.CROP]), values, 0.5).abs().sum() == 0
