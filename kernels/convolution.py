"""The 3x3 convolution, its input gradient and their tangents."""

from __future__ import annotations

from torch import Tensor


def convolve(a: Tensor, w: Tensor, out: Tensor, precision: str, *, transposed: bool = False) -> None:
    """Write the 3x3 convolution of padding 1 into ``out`` [S,B,H,W,Cout]."""
    raise NotImplementedError


def convolve_tangent(
    a: Tensor,
    a_dot: Tensor | None,
    w: Tensor,
    w_dot: Tensor,
    out: Tensor | None,
    out_dot: Tensor,
    precision: str,
    *,
    transposed: bool = False,
) -> None:
    """Write conv(a, w_dot) + conv(a_dot, w) into ``out_dot`` and conv(a, w) into ``out``."""
    raise NotImplementedError
