"""A tile of the 3x3 convolution and of its tangent, as matrix products over pixels.

A program multiplies a tile of pixels, whose nine neighbourhoods it gathers tap by tap, with a tile
of output channels. The taps are the inner loop: eight of nine reads of a pixel hit the L1 cache.
Of a network's first layer a tap is no more than a few numbers, and all taps are gathered at once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fastmtt.kernels.precision import multiply, rounded

FEW = 4  # up to so many input channels all taps are gathered at once
_FEW: tl.constexpr = tl.constexpr(FEW)


@triton.jit
def taps_inside(y, x, present, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """For each pixel nine bits: which taps read from the image and not from its border."""
    rows = 0b000111000 | tl.where(y > 0, 0b000000111, 0) | tl.where(y < HEIGHT - 1, 0b111000000, 0)
    columns = (
        0b010010010 | tl.where(x > 0, 0b001001001, 0) | tl.where(x < WIDTH - 1, 0b100100100, 0)
    )
    return tl.where(present, rows & columns, 0)


@triton.jit
def contract(
    a,
    a_dot,
    w,
    w_dot,
    pixels,
    y,
    x,
    present,
    columns,
    HEIGHT: tl.constexpr,
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
        y: their rows in the image.
        x: their columns.
        present: which of them are there.
        columns: output channels [BLOCK_N].
        HEIGHT: of an image.
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
    if C_IN <= _FEW:
        return _all_taps(
            a, a_dot, w, w_dot, pixels, y, x, present, columns, HEIGHT, WIDTH, C_IN, C_OUT,
            BLOCK_K, PRIMAL, TANGENT, MOVES, PRECISION,
        )  # fmt: skip
    else:
        taps = taps_inside(y, x, present, HEIGHT, WIDTH)
        return _tap_by_tap(
            a, a_dot, w, w_dot, pixels, taps, columns, WIDTH, C_IN, C_OUT, BLOCK_K, COPY, PRIMAL,
            TANGENT, MOVES, PRECISION,
        )  # fmt: skip


@triton.jit
def _all_taps(
    a,
    a_dot,
    w,
    w_dot,
    pixels,
    y,
    x,
    present,
    columns,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRIMAL: tl.constexpr,
    TANGENT: tl.constexpr,
    MOVES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same of few channels: their neighbourhoods side by side are what is multiplied.

    Which neighbours there are is compared by coordinates: of a tile masked by bits of
    :func:`taps_inside`, Triton 3.6 makes wrong code for some tiles of few pixels.
    """
    z = tl.zeros((pixels.shape[0], columns.shape[0]), tl.float32)
    z_dot = tl.zeros((pixels.shape[0], columns.shape[0]), tl.float32)
    for first in tl.static_range(0, 9 * C_IN, BLOCK_K):
        row = first + tl.arange(0, BLOCK_K)
        tap, channel = row // C_IN, row % C_IN
        dy, dx = row // (3 * C_IN) - 1, row // C_IN % 3 - 1
        down, across = y[:, None] + dy[None, :], x[:, None] + dx[None, :]
        inside = present[:, None] & (row < 9 * C_IN)[None, :]
        inside &= (down >= 0) & (down < HEIGHT) & (across >= 0) & (across < WIDTH)
        shift = (dy * WIDTH + dx) * C_IN + channel
        source = pixels[:, None] * C_IN + shift[None, :]
        wanted = (row < 9 * C_IN)[:, None] & (columns < C_OUT)[None, :]
        weights = (tap[:, None] * C_OUT + columns[None, :]) * C_IN + channel[:, None]
        if PRIMAL or TANGENT:
            n = rounded(tl.load(a + source, mask=inside, other=0.0), PRECISION)
        if PRIMAL or MOVES:
            k = tl.load(w + weights, mask=wanted, other=0.0)
        if PRIMAL:
            z = multiply(n, k, z, PRECISION)
        if TANGENT:
            k_dot = tl.load(w_dot + weights, mask=wanted, other=0.0)
            z_dot = multiply(n, k_dot, z_dot, PRECISION)
        if MOVES:
            n_dot = rounded(tl.load(a_dot + source, mask=inside, other=0.0), PRECISION)
            z_dot = multiply(n_dot, k, z_dot, PRECISION)
    return z, z_dot


@triton.jit
def _tap_by_tap(
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
    """The same of many channels, BLOCK_K of one tap at a time."""
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
    y,
    x,
    present,
    columns,
    HEIGHT: tl.constexpr,
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
    taps = taps_inside(y, x, present, HEIGHT, WIDTH)
    for tap in tl.static_range(9):
        inside = ((taps >> tap) & 1) != 0
        for channel in tl.static_range(C_IN):
            shift = ((tap // 3 - 1) * WIDTH + tap % 3 - 1) * C_IN + channel
            n = tl.load(a + pixels * C_IN + shift, mask=inside, other=0.0)[:, None]
            weights = (tap * C_IN + channel) * C_OUT + columns
            if PRIMAL:
                z += n * tl.load(w + weights, mask=wanted, other=0.0)[None, :]
            if TANGENT:
                z_dot += n * tl.load(w_dot + weights, mask=wanted, other=0.0)[None, :]
    return z, z_dot
