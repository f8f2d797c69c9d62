"""Weights as a kernel multiplies them: aligned, rounded, the summed channels contiguous.

Tensor cores read tf32 from shared memory only if the channels a convolution sums over lie side by
side, for the weights [3,3,Cin,Cout] of a forward convolution therefore transposed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastmtt.kernels.precision import rounded
from fastmtt.kernels.tuning import Config
from torch import Tensor

_TILE = Config({"TILE": 32}, warps=4, stages=1)


@triton.jit(do_not_specialize=["students"])
def _lay_out(
    w,
    w_dot,
    out,
    stride,
    stride_dot,
    students,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):
    """A program copies one tile [Cin,Cout] of one tap."""
    tiles: tl.constexpr = tl.cdiv(C_OUT, TILE)
    tap = tl.program_id(0) % 9
    tile = tl.program_id(0) // 9
    student = tl.program_id(1).to(tl.int64)
    rows = (tile // tiles * TILE + tl.arange(0, TILE))[:, None]
    columns = (tile % tiles * TILE + tl.arange(0, TILE))[None, :]
    inside = (rows < C_IN) & (columns < C_OUT)
    source = (tap * C_IN + rows) * C_OUT + columns
    if tl.program_id(2) == 0:
        x = tl.load(w + student * stride + source, mask=inside)
    else:
        x = tl.load(w_dot + student * stride_dot + source, mask=inside)
    x = rounded(x, PRECISION)
    if TRANSPOSED:
        place = ((8 - tap) * C_IN + rows) * C_OUT + columns
    else:
        place = (tap * C_OUT + columns) * C_IN + rows
    out += (tl.program_id(2) * students + student) * (9 * C_IN * C_OUT)
    tl.store(out + place, x, mask=inside)


def laid_out(weights: Sequence[Tensor], precision: str, *, transposed: bool = False) -> Tensor:
    """Copies of one or two weights [S,3,3,Cin,Cout], in one launch.

    Args:
        weights: w alone or (w, w_dot), contiguous for each student.
        precision: bf16 copies in bfloat16; tf32 rounds to it.
        transposed: for the input gradient, a convolution of gz with the taps turned round.

    Returns:
        [len(weights),S,9,Cout,Cin], or [len(weights),S,9,Cin,Cout] if transposed.
    """
    w, w_dot = weights[0], weights[-1]
    students, _, _, c_in, c_out = w.shape
    dtype = torch.bfloat16 if precision == "bf16" else w.dtype
    sides = (c_in, c_out) if transposed else (c_out, c_in)
    out = torch.empty((len(weights), students, 9, *sides), dtype=dtype, device=w.device)
    tile = _TILE.sizes["TILE"]
    tiles = triton.cdiv(c_in, tile) * triton.cdiv(c_out, tile)
    _lay_out[(9 * tiles, students, len(weights))](
        w,
        w_dot,
        out,
        w.stride(0),
        w_dot.stride(0),
        students,
        C_IN=c_in,
        C_OUT=c_out,
        TRANSPOSED=transposed,
        PRECISION=precision,
        **_TILE.launch,
    )
    return out
