"""GSAM's two vector formulas, spelt over a list of parameter tensors as its authors do."""

import pytest
import torch
from compare import assert_close
from tolerances import FORMULA, ROUNDING_32

from fastmtt import ops

SHAPES = [(4, 3, 3, 3), (4,), (5, 16), (5,)]


def tensors(seed):
    make = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=make, dtype=torch.float64) for shape in SHAPES]


def flat(parts):
    return torch.cat([p.reshape(-1) for p in parts])[None]


def norm(parts):
    return torch.stack([p.norm() for p in parts]).norm()


@pytest.mark.parametrize("adaptive", [True, False])
def test_perturb(adaptive):
    theta, g, rho = tensors(0), tensors(1), 0.05
    if adaptive:
        scale = rho / (norm([w.abs() * d for w, d in zip(theta, g, strict=True)]) + 1e-12)
        want = [w + w * w * d * scale for w, d in zip(theta, g, strict=True)]
    else:
        scale = rho / (norm(g) + 1e-12)
        want = [w + d * scale for w, d in zip(theta, g, strict=True)]
    assert_close(ops.gsam_perturb(flat(theta), flat(g), rho, adaptive), flat(want), FORMULA)


def test_combine():
    g, perturbed, alpha = tensors(2), tensors(3), 0.3
    inner = sum((a * b).sum() for a, b in zip(g, perturbed, strict=True))
    cosine = inner / (norm(perturbed) * norm(g) + 1e-12)
    want = []
    for a, b in zip(g, perturbed, strict=True):
        vertical = a - cosine * norm(g) * b / (norm(perturbed) + 1e-12)
        want.append(b - alpha * vertical)
    assert_close(ops.gsam_combine(flat(g), flat(perturbed), alpha), flat(want), FORMULA)


def test_students_do_not_mix():
    theta, g = torch.cat([flat(tensors(s)) for s in (0, 1)]), torch.cat([flat(tensors(2))] * 2)
    both = ops.gsam_perturb(theta, g, 0.1, True), ops.gsam_combine(theta, g, 0.4)
    for s in (0, 1):
        row = slice(s, s + 1)
        assert torch.equal(both[0][row], ops.gsam_perturb(theta[row], g[row], 0.1, True))
        assert torch.equal(both[1][row], ops.gsam_combine(theta[row], g[row], 0.4))


def test_no_radius_is_sgd_and_no_alpha_is_sam():
    theta, g = flat(tensors(0)), flat(tensors(1))
    assert torch.equal(ops.gsam_perturb(theta, g, 0.0, True), theta)
    assert torch.equal(ops.gsam_combine(theta, g, 0.0), g)


def test_no_gradient_moves_nothing():
    theta = flat(tensors(0))
    assert torch.equal(ops.gsam_perturb(theta, torch.zeros_like(theta), 0.05, True), theta)


def vectors(dtype, shape=(3, 70001)):
    make = torch.Generator().manual_seed(4)
    return [torch.randn(shape, generator=make, dtype=torch.float64).to(dtype) for _ in range(2)]


def both(theta, g):
    return torch.stack(
        [
            torch.ops.fastmtt.gsam_perturb(theta, g, 0.1, True),
            torch.ops.fastmtt.gsam_perturb(theta, g, 0.1, False),
            torch.ops.fastmtt.gsam_combine(theta, g, 0.4),
        ]
    )


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_depends_on_threads_company_or_strides(dtype):
    theta, g = vectors(dtype)
    whole = both(theta, g)
    before = torch.get_num_threads()
    try:
        for threads in (2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(both(theta, g), whole)
    finally:
        torch.set_num_threads(before)
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(both(theta[one], g[one]), whole[:, one])
    columns, longer = theta.T.contiguous().T, torch.empty(3, 70004, dtype=dtype)[:, 1:-2]
    assert torch.equal(both(columns, longer.copy_(g)), whole)


@pytest.mark.usefixtures("extension")
def test_norms_are_added_in_double():
    g = torch.full((1, 1 << 20), 0.1)
    g[0, 0] = 1e3  # in float32 the later squares would lose most of their digits against it
    moved = torch.ops.fastmtt.gsam_perturb(torch.zeros_like(g), g, 1.0, False).double()
    assert_close(moved, g.double() / g.double().norm(), ROUNDING_32)


@pytest.mark.usefixtures("extension")
def test_what_is_refused():
    a = torch.zeros(2, 3)
    with pytest.raises(RuntimeError, match=r"gsam_perturb: theta must have shape \[S, P\]"):
        torch.ops.fastmtt.gsam_perturb(a[0], a[0], 0.1, True)
    with pytest.raises(RuntimeError, match="gsam_combine: g_perturbed must have the shape of g"):
        torch.ops.fastmtt.gsam_combine(a, a[:1], 0.4)
