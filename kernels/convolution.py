"""The 3x3 convolution as a matrix product over pixels, its input gradient and their tangents.

A program multiplies a tile of pixels, whose nine neighbourhoods it gathers tap by tap, with a tile
of output channels. The taps are the inner loop: eight of nine reads of a pixel hit the L1 cache.
The input gradient is the same product with the weights transposed and the taps turned round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from fastmtt.kernels.precision import multiply
from fastmtt.kernels.tuning import Config, choose
from fastmtt.kernels.weights import laid_out
from torch import Tensor

DIRECT = 4  # up to so many input channels a tensor core has little to do: plain multiply-adds


@triton.jit
def taps_inside(y, x, present, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """For each pixel nine bits: which taps read from the image and not from its border."""
    bits = tl.zeros_like(y)
    for tap in tl.static_range(9):
        row = y + (tap // 3 - 1)
        column = x + (tap % 3 - 1)
        inside = present & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
        bits |= inside.to(tl.int32) << tap
    return bits


@triton.jit
def contract(
    a,
    a_dot,
    w,
    w_dot,
    pixels,
    taps,
    columns,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
    PRIMAL: tl.constexpr,
    TANGENT: tl.constexpr,
    MOVES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of conv(a, w) if PRIMAL, and of conv(a, w_dot), with conv(a_dot, w) added if MOVES.

    Args:
        a: the first of the images; the pixels' offsets count from it. So for a_dot.
        a_dot: read if MOVES.
        w: one student's laid out weights [9,Cout,Cin].
        w_dot: their tangent, read if TANGENT.
        pixels: offsets [BLOCK_M] of pixels.
        taps: their bits of :func:`taps_inside`.
        columns: output channels [BLOCK_N].
        WIDTH: of an image.
        C_IN: channels summed over.
        C_OUT: output channels.
        BLOCK_K: channels a step.
        COPY: bytes of an asynchronous copy of activations. Only those under 16 use the L1 cache
            in Triton 3.6, those of 16 are half as many.
        PRIMAL: whether conv(a, w) is wanted.
        TANGENT: whether the tangent is wanted.
        MOVES: whether a_dot differs from zero.
        PRECISION: bf16, tf32 or ieee.

    Returns:
        z, z_dot [BLOCK_M,BLOCK_N] in float32; one that is not wanted is zero.
    """
    z = tl.zeros((pixels.shape[0], columns.shape[0]), tl.float32)
    z_dot = tl.zeros((pixels.shape[0], columns.shape[0]), tl.float32)
    inputs = tl.arange(0, BLOCK_K)
    size: tl.constexpr = a.dtype.element_ty.primitive_bitwidth // 8
    across = tl.max_contiguous(pixels[:, None] * C_IN + inputs[None, :], (1, COPY // size))
    down = columns[None, :] * C_IN + inputs[:, None]
    for step in range(9 * tl.cdiv(C_IN, BLOCK_K)):
        first = step // 9 * BLOCK_K
        tap = step % 9
        inside = ((taps >> tap) & 1)[:, None] != 0
        wanted = columns[None, :] < C_OUT
        if C_IN % BLOCK_K != 0:
            inside &= (inputs < C_IN - first)[None, :]
            wanted &= (inputs < C_IN - first)[:, None]
        source = across + (((tap // 3 - 1) * WIDTH + tap % 3 - 1) * C_IN + first)
        weights = down + (tap * (C_OUT * C_IN) + first)
        if PRIMAL or TANGENT:
            x = tl.load(a + source, mask=inside, other=0.0, cache_modifier=".ca")
        if PRIMAL or MOVES:
            k = tl.load(w + weights, mask=wanted, other=0.0)
        if PRIMAL:
            z = multiply(x, k, z, PRECISION)
        if TANGENT:
            k_dot = tl.load(w_dot + weights, mask=wanted, other=0.0)
            z_dot = multiply(x, k_dot, z_dot, PRECISION)
        if MOVES:
            x_dot = tl.load(a_dot + source, mask=inside, other=0.0, cache_modifier=".ca")
            z_dot = multiply(x_dot, k, z_dot, PRECISION)
    return z, z_dot


@triton.jit
def contract_directly(
    a,
    w,
    w_dot,
    pixels,
    taps,
    columns,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    PRIMAL: tl.constexpr,
    TANGENT: tl.constexpr,
):
    """As :func:`contract` in float32 without tensor cores, for few input channels and no a_dot.

    Here w and w_dot are weights as they are, [9,Cin,Cout].
    """
    z = tl.zeros((pixels.shape[0], columns.shape[0]), tl.float32)
    z_dot = tl.zeros((pixels.shape[0], columns.shape[0]), tl.float32)
    wanted = columns < C_OUT
    for tap in tl.static_range(9):
        inside = ((taps >> tap) & 1) != 0
        for channel in tl.static_range(C_IN):
            shift = ((tap // 3 - 1) * WIDTH + tap % 3 - 1) * C_IN + channel
            x = tl.load(a + pixels * C_IN + shift, mask=inside, other=0.0)[:, None]
            weights = (tap * C_IN + channel) * C_OUT + columns
            if PRIMAL:
                z += x * tl.load(w + weights, mask=wanted, other=0.0)[None, :]
            if TANGENT:
                z_dot += x * tl.load(w_dot + weights, mask=wanted, other=0.0)[None, :]
    return z, z_dot


@triton.jit
def _convolution(
    a,
    a_dot,
    w,
    w_dot,
    out,
    out_dot,
    pixels_of_student,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    PRIMAL: tl.constexpr,
    TANGENT: tl.constexpr,
    MOVES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
):
    """A program owns BLOCK_M successive pixels of one student's images, BLOCK_N channels."""
    tiles: tl.constexpr = tl.cdiv(C_OUT, BLOCK_N)
    first = tl.program_id(0) // tiles * BLOCK_M
    student = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    pixels = tl.arange(0, BLOCK_M)
    present = pixels < pixels_of_student - first
    taps = taps_inside(
        (first + pixels) // WIDTH % HEIGHT, (first + pixels) % WIDTH, present, HEIGHT, WIDTH
    )
    base = student * pixels_of_student + first
    z, z_dot = contract(
        a + base * C_IN,
        a_dot + base * C_IN,
        w + student * (9 * C_IN * C_OUT),
        w_dot + student * (9 * C_IN * C_OUT),
        pixels,
        taps,
        columns,
        WIDTH,
        C_IN,
        C_OUT,
        BLOCK_K,
        COPY,
        PRIMAL,
        TANGENT,
        MOVES,
        PRECISION,
    )
    out += base * C_OUT
    out_dot += base * C_OUT
    place = pixels[:, None] * C_OUT + columns[None, :]
    mask = present[:, None] & (columns < C_OUT)[None, :]
    if PRIMAL:
        tl.store(out + place, z, mask=mask)
    if TANGENT or MOVES:
        tl.store(out_dot + place, z_dot, mask=mask)


def convolve(
    a: Tensor, w: Tensor, out: Tensor, precision: str, *, transposed: bool = False
) -> None:
    """Write a 3x3 convolution with padding 1 into ``out``.

    Args:
        a: [S,B,H,W,Cin], or the cotangent gz [S,B,H,W,Cout] if transposed; float32, or bfloat16
            if that is the precision.
        w: [S,3,3,Cin,Cout], contiguous for each student.
        out: float32 [S,B,H,W,Cout], or [S,B,H,W,Cin] if transposed.
        precision: of :mod:`fastmtt.kernels.precision`.
        transposed: compute the input gradient.
    """
    _run(Operands(a, None, w, None, precision, transposed), out, None)


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
    """Write conv(a, w_dot) + conv(a_dot, w) into ``out_dot`` and conv(a, w) into ``out``.

    Shapes and dtypes as for :func:`convolve`; ``a_dot=None`` stands for zero, and without ``out``
    the primal is left out.
    """
    _run(Operands(a, a_dot, w, w_dot, precision, transposed), out, out_dot)


class Operands:
    """What a convolution kernel reads, as it wants it: rounded, aligned, the weights laid out.

    Attributes:
        pointers: (a, a_dot, w, w_dot); stand-ins where a tangent is None.
        constants: sizes and flags by the kernels' names, PRIMAL aside.
        key: what the choice of a configuration depends on.
    """

    def __init__(
        self,
        a: Tensor,
        a_dot: Tensor | None,
        w: Tensor,
        w_dot: Tensor | None,
        precision: str,
        transposed: bool = False,
    ) -> None:
        weights = laid_out([w] if w_dot is None else [w, w_dot], precision, transposed=transposed)
        if precision == "bf16":
            a = a.to(torch.bfloat16)
            a_dot = None if a_dot is None else a_dot.to(torch.bfloat16)
        self.pointers = (a, a if a_dot is None else a_dot, weights[0], weights[-1])
        self.students, self.images, height, width, c_in = a.shape
        self.constants: dict[str, Any] = {
            "HEIGHT": height,
            "WIDTH": width,
            "C_IN": c_in,
            "C_OUT": weights.shape[-2],
            "TANGENT": w_dot is not None,
            "MOVES": a_dot is not None,
            "PRECISION": precision,
        }
        self.key = (self.students, self.images, *self.constants.values())


def _run(operands: Operands, out: Tensor | None, out_dot: Tensor | None) -> None:
    constants = {**operands.constants, "PRIMAL": out is not None}
    pixels = operands.images * constants["HEIGHT"] * constants["WIDTH"]
    places = [t if t is not None else other for t, other in ((out, out_dot), (out_dot, out))]

    def launch(config: Config) -> None:
        tiles = triton.cdiv(pixels, config.sizes["BLOCK_M"]) * triton.cdiv(
            constants["C_OUT"], config.sizes["BLOCK_N"]
        )
        _convolution[(tiles, operands.students)](
            *operands.pointers, *places, pixels, **constants, **config.launch
        )

    configs = configurations(constants)
    launch(choose("convolution", (*operands.key, out is not None), configs, launch))


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What ConvNets compile: (name, kernel, types, constants, configuration) each."""
    for precision in ("tf32", "bf16"):
        kind = "*bf16" if precision == "bf16" else "*fp32"
        types = dict.fromkeys(("a", "a_dot", "w", "w_dot"), kind)
        types |= {"out": "*fp32", "out_dot": "*fp32", "pixels_of_student": "i32"}
        for c_out, (primal, tangent) in product((128, 3), (_PRIMAL, _TANGENT, _BOTH)):
            constants: dict[str, Any] = {"HEIGHT": 32, "WIDTH": 32, "C_IN": 128, "C_OUT": c_out}
            constants |= {"PRIMAL": primal, "TANGENT": tangent, "MOVES": tangent}
            constants |= {"PRECISION": precision}
            name = f"convolution {precision} 128->{c_out}" + " primal" * primal
            for config in configurations(constants):
                yield name + " tangent" * tangent, _convolution, types, constants, config


_PRIMAL, _TANGENT, _BOTH = (True, False), (False, True), (True, True)


def configurations(constants: dict[str, Any]) -> list[Config]:
    """Tiles worth trying: few, and none that spills registers (see the tests)."""
    if constants["PRIMAL"] and constants["TANGENT"]:
        wanted = "both"
    else:
        wanted = "sum" if constants["MOVES"] else "one"
    precision = constants["PRECISION"]
    if precision == "ieee":
        tiles = [tile(64, 32, 16, 8, 2, copy=16)]
    else:
        tiles = _TILES[wanted](32 if precision == "tf32" else 64)
    return fitted(tiles, constants["C_IN"], constants["C_OUT"])


def tile(
    m: int, n: int, k: int, warps: int, stages: int, copy: int = 8, capability: int = 80
) -> Config:
    """A tile of m pixels and n output channels, k input channels a step, copies of some bytes."""
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "COPY": copy}
    return Config(sizes, warps, stages, capability)


_TILES: dict[str, Callable[[int], list[Config]]] = {  # by the channels of 128 bytes
    "one": lambda k: [
        tile(128, 128, k, 8, 3),
        tile(256, 128, k, 8, 3),
        tile(256, 128, k, 8, 3, copy=16),
        tile(128, 64, k, 4, 3),
        tile(64, 32, k, 4, 4),
    ],
    "sum": lambda k: [
        tile(128, 128, k, 8, 3),
        tile(128, 128, k, 8, 3, copy=16),
        tile(128, 64, k, 8, 3),
        tile(64, 32, k, 4, 3, capability=90),
    ],
    "both": lambda k: [
        tile(128, 64, k, 8, 3),
        tile(128, 128, k, 8, 2, capability=90),
        tile(128, 128, k, 8, 2, copy=16, capability=90),
        tile(64, 32, k, 4, 3),
    ],
}


def fitted(configs: Iterable[Config], c_in: int, c_out: int) -> list[Config]:
    """The configurations with no tile much larger than the channels, each once."""
    smaller = (
        replace(
            config,
            sizes={
                **config.sizes,
                "BLOCK_N": min(config.sizes["BLOCK_N"], _power(c_out)),
                "BLOCK_K": min(config.sizes["BLOCK_K"], _power(c_in)),
            },
        )
        for config in configs
    )
    return list({str(config): config for config in smaller}.values())


def _power(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))
