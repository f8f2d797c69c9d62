"""The block's backward on a GPU: the norm's, then the convolution's two gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastmtt.kernels import precision as precisions
from fastmtt.kernels.contraction import FEW
from fastmtt.kernels.convolution import convolve
from fastmtt.kernels.first_layer_backward import first_layer_backward
from fastmtt.kernels.norm_backward import norm_backward
from fastmtt.kernels.weight_gradient import add_parts, weight_gradient
from torch import Tensor


def conv_block_backward(
    gp: Tensor,
    a: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    needs: Sequence[bool],
    bf16: bool = False,
    *,
    into: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Cotangents of (a, w, gamma, beta) as :func:`fastmtt.ops.reference.conv_block_backward`."""
    need_a, need_parameters = needs
    wanted = (need_a, need_parameters, need_parameters, need_parameters)
    ga, gw, ggamma, gbeta = results = places(wanted, (a, w, gamma, beta), into)
    if not (need_a or need_parameters):
        return results
    precision = precisions.of(a, a.shape[-1], bf16)
    norm_parts = (torch.empty_like(rstd), torch.empty_like(rstd))
    w_parts = None
    if a.shape[-1] <= FEW and not need_a:
        w_parts = first_layer_backward(gp, a, gamma, beta, xhat, rstd, norm_parts, precision)
    else:
        gz = torch.empty_like(xhat, dtype=operand_dtype(precision))
        norm_backward(gp, xhat, rstd, gamma, beta, gz, norm_parts, precision)
        if need_a:
            convolve(gz, w, ga, precision, transposed=True)
        if need_parameters:
            w_parts = weight_gradient([(a.to(gz.dtype), gz)], gw, precision)
    if need_parameters:
        add_parts(w_parts, norm_parts, gw, ggamma, gbeta)
    return results


def places(
    wanted: Sequence[bool], like: Sequence[Tensor], into: Sequence[Tensor] | None
) -> tuple[Tensor, ...]:
    """Where results go: the tensors given, or fresh ones, of shape (0,) where not wanted."""
    if into is not None:
        return tuple(into[: len(wanted)])
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        if want
        else tensor.new_empty(0)
        for want, tensor in zip(wanted, like, strict=True)
    )


def operand_dtype(precision: str) -> torch.dtype:
    """How what a convolution multiplies is stored."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
