"""The ConvNet block as an autograd function that can be differentiated twice, in either mode.

Four primitives suffice. With F(u; gp) = <block(u), gp> and u = (a, w, gamma, beta), the block's
backward is the gradient of F in u. Its own vector-Jacobian product in direction v is the Hessian of
F times v, which by symmetry is the backward's tangent in direction v, and the block's tangent for
gp: both are ops already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastmtt import ops


def conv_block(a: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """conv3x3 -> instance norm -> ReLU -> 2x2 average pool, twice differentiable.

    Args:
        a: activations [S,B,H,W,Cin], float32 or float64.
        w: weights [S,3,3,Cin,Cout].
        gamma: scale of the norm [S,Cout].
        beta: shift of the norm [S,Cout].

    Returns:
        The pooled activations [S,B,H//2,W//2,Cout].
    """
    return _Block.apply(a, w, gamma, beta)


def conv_block_backward(
    gp: Tensor, a: Tensor, w: Tensor, gamma: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cotangents of (a, w, gamma, beta) as a differentiable function of all five inputs."""
    return _BlockBackward.apply(gp, a, w, gamma, beta)


class _Block(Function):
    @staticmethod
    def forward(a: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        pooled: Tensor = ops.conv_block(a, w, gamma, beta)[0]
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gp: Tensor) -> tuple[Tensor, ...]:
        return _BlockBackward.apply(gp, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _jvp(ctx.saved_tensors, _filled(tangents, ctx.saved_tensors))


class _BlockBackward(Function):
    @staticmethod
    def forward(
        gp: Tensor, a: Tensor, w: Tensor, gamma: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, xhat, rstd = ops.conv_block(a, w, gamma, beta)
        return ops.conv_block_backward(gp.contiguous(), a, w, gamma, beta, xhat, rstd, (True, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor, ...]:
        gp, *u = ctx.saved_tensors
        if torch.is_grad_enabled() and any(t.requires_grad for t in (*v, *ctx.saved_tensors)):
            raise RuntimeError(
                "a third derivative of the ConvNet block was asked for; two are available: "
                "drop create_graph=True from the second differentiation, or use the plain module"
            )
        return _jvp(u, v), *_backward_jvp(gp, torch.zeros_like(gp), u, v)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        gp, *u = ctx.saved_tensors
        gp_dot, *u_dot = _filled(tangents, ctx.saved_tensors)
        return _backward_jvp(gp, gp_dot, u, u_dot)


def _filled(tangents: tuple[Tensor | None, ...], like: tuple[Tensor, ...]) -> list[Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, like, strict=True)]


def _interleaved(u: Any, v: Any) -> list[Tensor]:
    return [tensor.contiguous() for pair in zip(u, v, strict=True) for tensor in pair]


def _jvp(u: Any, v: Any) -> Tensor:
    tangent: Tensor = ops.conv_block_jvp(*_interleaved(u, v), None, None)[1]
    return tangent


def _backward_jvp(gp: Tensor, gp_dot: Tensor, u: Any, v: Any) -> tuple[Tensor, ...]:
    block = _interleaved(u, v)
    _, _, xhat_dot, rstd_dot, xhat, rstd = ops.conv_block_jvp(*block, None, None)
    *without_beta_dot, _ = block
    return ops.conv_block_backward_jvp(
        gp.contiguous(),
        gp_dot.contiguous(),
        *without_beta_dot,
        xhat,
        rstd,
        xhat_dot,
        rstd_dot,
        (True, True, False),
    )[:4]
