"""The tangent of the block's backward on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastmtt.kernels import precision as precisions
from fastmtt.kernels.contraction import FEW
from fastmtt.kernels.conv_block_backward import operand_dtype, places
from fastmtt.kernels.convolution import convolve, convolve_tangent
from fastmtt.kernels.first_layer_backward import first_layer_backward
from fastmtt.kernels.norm_backward import norm_backward
from fastmtt.kernels.weight_gradient import add_parts, weight_gradient
from torch import Tensor


def conv_block_backward_jvp(
    gp: Tensor,
    gp_dot: Tensor,
    a: Tensor,
    a_dot: Tensor | None,
    w: Tensor,
    w_dot: Tensor,
    gamma: Tensor,
    gamma_dot: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    xhat_dot: Tensor,
    rstd_dot: Tensor,
    needs: Sequence[bool],
    bf16: bool = False,
    *,
    into: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """As :func:`fastmtt.ops.reference.conv_block_backward_jvp`."""
    need_a_dot, need_parameters, need_a = needs
    wanted = (need_a_dot, need_parameters, need_parameters, need_parameters, need_a)
    results = places(wanted, (a, w, gamma, beta, a), into)
    ga_dot, gw_dot, ggamma_dot, gbeta_dot, ga = results
    if not any(needs):
        return results
    precision = precisions.of(a, a.shape[-1], bf16)
    norm_parts = (torch.empty_like(rstd), torch.empty_like(rstd))
    tangent = (gp_dot, xhat_dot, rstd_dot, gamma_dot)
    w_parts = None
    if a.shape[-1] <= FEW and not need_a:
        w_parts = first_layer_backward(
            gp,
            a,
            gamma,
            beta,
            xhat,
            rstd,
            norm_parts,
            precision,
            parameters=need_parameters,
            tangent=tangent,
            a_dot=a_dot,
            weights=(w, w_dot),
            ga_dot=ga_dot if need_a_dot else None,
        )
    else:
        dtype = operand_dtype(precision)
        need_gz = need_a_dot or need_a or a_dot is not None
        gz = torch.empty_like(xhat, dtype=dtype) if need_gz else None
        gz_dot = torch.empty_like(xhat, dtype=dtype)
        norm_backward(gp, xhat, rstd, gamma, beta, gz, norm_parts, precision, tangent, gz_dot)
        if need_a_dot:
            out = ga if need_a else None
            convolve_tangent(gz, gz_dot, w, w_dot, out, ga_dot, precision, transposed=True)
        elif need_a:
            convolve(gz, w, ga, precision, transposed=True)
        if need_parameters:
            pairs = [(a.to(dtype), gz_dot)]
            if a_dot is not None and gz is not None:
                pairs.append((a_dot.to(dtype), gz))
            w_parts = weight_gradient(pairs, gw_dot, precision)
    if need_parameters:
        add_parts(w_parts, norm_parts, gw_dot, ggamma_dot, gbeta_dot)
    return results
