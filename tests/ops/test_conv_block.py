"""The ConvNet block: its formula, its derivatives to second order, its tangents."""

import pytest
import torch
from compare import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SHAPES, block, flags, normalised, pooled, samples
from tolerances import FORMULA

from fastmtt import ops
from fastmtt.ops import differentiable

SMALL = (2, 2, 4, 5, 2, 3)  # gradcheck perturbs every entry


@pytest.fixture
def checked():
    """(gp, a, w, gamma, beta) as leaves for gradcheck."""
    return [t.requires_grad_() for t in block(SMALL)[0]]


def test_gradcheck_in_both_modes(checked):
    assert torch.autograd.gradcheck(differentiable.conv_block, checked[1:], check_forward_ad=True)


def test_gradgradcheck_and_forward_over_reverse(checked):
    assert torch.autograd.gradgradcheck(
        differentiable.conv_block, checked[1:], check_fwd_over_rev=True
    )


def test_backward_is_itself_a_function_with_both_modes(checked):
    assert torch.autograd.gradcheck(
        differentiable.conv_block_backward, checked, check_forward_ad=True
    )


def test_third_derivative_is_refused(checked):
    gp, *u = checked
    g = torch.autograd.grad(differentiable.conv_block(*u), u[1], gp, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="third derivative.*drop create_graph"):
        torch.autograd.grad(g.square().sum(), u[1], create_graph=True)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 3),
        st.integers(2, 7),
        st.integers(2, 7),
        st.integers(1, 5),
        st.integers(1, 9),
    )
)
def test_forward_and_backward_of_any_shape(shape):
    (gp, *u), _ = block(shape)
    leaves = [t.requires_grad_() for t in u]
    p, xhat, rstd = ops.conv_block(*[t.detach() for t in u])
    want = pooled(*leaves)
    assert_close(p, want, FORMULA, "p")
    for got, formula, name in zip((xhat, rstd), normalised(*u[:2]), ("xhat", "rstd"), strict=True):
        assert_close(got, formula, FORMULA, name)
    got = ops.conv_block_backward(gp, *[t.detach() for t in u], xhat, rstd, (True, True))
    cotangents = torch.autograd.grad(want, leaves, gp)
    for g, c, name in zip(got, cotangents, ("ga", "gw", "ggamma", "gbeta"), strict=True):
        # a cotangent may vanish, so it is measured against the largest of them
        assert (g - c).norm() <= FORMULA * max(x.norm() for x in cotangents), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("moves_a", [True, False])
def test_jvp_against_torch_func(shape, moves_a):
    (_, *u), (_, *v) = block(shape)
    direction = [v[0] if moves_a else torch.zeros_like(v[0]), *v[1:]]
    p, p_dot = torch.func.jvp(pooled, tuple(u), tuple(direction))
    statistics, statistics_dot = torch.func.jvp(normalised, tuple(u[:2]), tuple(direction[:2]))
    a_dot = v[0] if moves_a else None
    got = ops.conv_block_jvp(u[0], a_dot, u[1], v[1], u[2], v[2], u[3], v[3], None, None)
    want = (p, p_dot, *statistics_dot, *statistics)
    names = ("p", "p_dot", "xhat_dot", "rstd_dot", "xhat", "rstd")
    for g, w, name in zip(got, want, names, strict=True):
        assert_close(g, w, FORMULA, name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("moves_a", [True, False])
def test_backward_jvp_against_torch_func(shape, moves_a):
    (gp, *u), (gp_dot, *v) = block(shape)
    direction = [v[0] if moves_a else torch.zeros_like(v[0]), *v[1:]]

    def cotangents(gp, *u):
        return torch.func.vjp(pooled, *u)[1](gp)

    primal, want = torch.func.jvp(cotangents, (gp, *u), (gp_dot, *direction))
    (xhat, rstd), (xhat_dot, rstd_dot) = torch.func.jvp(
        normalised, tuple(u[:2]), tuple(direction[:2])
    )
    got = ops.conv_block_backward_jvp(
        gp, gp_dot, u[0], v[0] if moves_a else None, u[1], v[1], u[2], v[2], u[3],
        xhat, rstd, xhat_dot, rstd_dot, (True, True, True),
    )  # fmt: skip
    names = ("ga_dot", "gw_dot", "ggamma_dot", "gbeta_dot", "ga")
    for g, w, name in zip(got, (*want, primal[0]), names, strict=True):
        assert_close(g, w, FORMULA, name)


def test_given_statistics_change_no_bit_and_come_back_empty():
    for without, given_too in zip(
        samples("conv_block_jvp")[::2], samples("conv_block_jvp")[1::2], strict=True
    ):
        *_, xhat, rstd = found = ops.conv_block_jvp(*without)
        again = ops.conv_block_jvp(*given_too[:-3], xhat, rstd, False)
        assert all(torch.equal(a, b) for a, b in zip(found[:4], again[:4], strict=True))
        assert [t.shape for t in again[4:]] == [(0,), (0,)]


@pytest.mark.parametrize("op", ["conv_block_backward", "conv_block_backward_jvp"])
def test_what_is_not_needed_comes_back_empty_and_the_rest_is_the_same(op):
    served = {
        "conv_block_backward": lambda a, p: (a, p, p, p),
        "conv_block_backward_jvp": lambda a, p, ga: (a, p, p, p, ga),
    }[op]
    count = 2 if op == "conv_block_backward" else 3
    first = samples(op)[: 2**count]
    assert [arguments[-2] for arguments in first] == flags(count)
    everything = getattr(ops, op)(*first[0])
    for arguments in first[1:]:
        found = getattr(ops, op)(*arguments)
        for got, whole, needed in zip(found, everything, served(*arguments[-2]), strict=True):
            assert torch.equal(got, whole) if needed else got.shape == (0,)
