"""Backward of a network's first block, whose few input channels make memory the limit.

gz never leaves a program: it is multiplied with the images' 3x3 patches for the weight gradient,
and with the weights for the cotangent of every pixel's patch, which a second kernel folds back
onto the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.norm_backward import (
    image_of,
    output_cotangents,
    plane_sums,
    read,
    write_parts,
)
from fastmtt.kernels.patches import rows_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit
def _patches(
    a,
    start,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The 3x3 surroundings [PIXELS, ROWS] of some pixels of an image, zero outside it."""
    row = tl.arange(0, ROWS)[None, :]
    pixel = start + tl.arange(0, PIXELS)[:, None]
    dy, dx = row // (3 * CIN) - 1, row // CIN % 3 - 1
    y, x = pixel // WIDTH + dy, pixel % WIDTH + dx
    seen = (row < 9 * CIN) & (pixel < HEIGHT * WIDTH)
    seen &= (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    found = tl.load(a + (y * WIDTH + x) * CIN + row % CIN, mask=seen, other=0.0)
    return rounded(found, PRECISION)


@triton.jit
def _weights(
    w, c, CIN: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr
):
    """[channels, ROWS]: what a pixel's gz is multiplied with for its patch's cotangent."""
    row = tl.arange(0, ROWS)[None, :]
    c = tl.trans(c)
    inside = (row < 9 * CIN) & (c < CHANNELS)
    return rounded(tl.load(w + row * CHANNELS + c, mask=inside, other=0.0), PRECISION)


@triton.jit(do_not_specialize=["images"])
def _first_layer_backward(
    gp,
    gp_dot,
    xhat,
    xhat_dot,
    rstd,
    rstd_dot,
    gamma,
    gamma_dot,
    beta,
    a,
    a_dot,
    w,
    w_dot,
    w_parts,
    gamma_parts,
    beta_parts,
    patches,
    gamma_stride,
    gamma_dot_stride,
    beta_stride,
    w_stride,
    w_dot_stride,
    images,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    CHANNELS: tl.constexpr,
    TANGENT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    AREA: tl.constexpr = HEIGHT * WIDTH
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile_id = tl.program_id(0) % tiles
    student = image // images
    c = (tile_id * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    tensors = (gp, gp_dot, xhat, xhat_dot, rstd, rstd_dot, gamma, gamma_dot, beta)
    strides = (gamma_stride, gamma_dot_stride, beta_stride)
    planes, statistics = image_of(
        tensors, strides, image, student, c, HEIGHT, WIDTH, CHANNELS, TANGENT
    )
    sums, _ = plane_sums(planes, statistics, c, HEIGHT, WIDTH, CHANNELS, PIXELS, TANGENT)
    write_parts(sums, gamma_parts, beta_parts, image, c, CHANNELS, TANGENT)

    a += image * (AREA * CIN)
    if a_dot is not None:
        a_dot += image * (AREA * CIN)
    if patches is not None:
        patches += (image * tiles + tile_id) * (AREA * ROWS)
        w_tile = _weights(w + student * w_stride, c, CIN, CHANNELS, ROWS, PRECISION)
        w_dot_tile = _weights(w_dot + student * w_dot_stride, c, CIN, CHANNELS, ROWS, PRECISION)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    row = tl.arange(0, ROWS)
    for start in range(0, AREA, PIXELS):
        tile = read(
            planes,
            statistics[0],
            statistics[4],
            start,
            c,
            HEIGHT,
            WIDTH,
            CHANNELS,
            PIXELS,
            TANGENT,
        )
        gz, gz_dot = output_cotangents(tile, sums, statistics, AREA, TANGENT)
        gz, gz_dot = rounded(gz, PRECISION), rounded(gz_dot, PRECISION)
        if w_parts is not None:
            a_tile = _patches(a, start, HEIGHT, WIDTH, CIN, PIXELS, ROWS, PRECISION)
            acc = multiply(tl.trans(a_tile), gz_dot, acc, PRECISION)
            if a_dot is not None:
                a_tile = _patches(a_dot, start, HEIGHT, WIDTH, CIN, PIXELS, ROWS, PRECISION)
                acc = multiply(tl.trans(a_tile), gz, acc, PRECISION)
        if patches is not None:
            found = tl.zeros((PIXELS, ROWS), tl.float32)
            found = multiply(gz_dot, w_tile, found, PRECISION)
            found = multiply(gz, w_dot_tile, found, PRECISION)
            pixel = start + tl.arange(0, PIXELS)[:, None]
            tl.store(patches + pixel * ROWS + row[None, :], found, mask=pixel < AREA)
    if w_parts is not None:
        w_parts += image * (9 * CIN * CHANNELS)
        inside = (row[:, None] < 9 * CIN) & (c < CHANNELS)
        tl.store(w_parts + row[:, None] * CHANNELS + c, acc, mask=inside)


@triton.jit
def _fold(
    patches,
    out,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    ROWS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """An image's pixels sum what the patches they are part of hold for them."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    image = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = element % CIN, element // CIN
    patches += image * (TILES * AREA * ROWS)
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(9):
        y, x = pixel // WIDTH - (tap // 3 - 1), pixel % WIDTH - (tap % 3 - 1)
        seen = (pixel < AREA) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
        at = (y * WIDTH + x) * ROWS + tap * CIN + channel
        for tile in tl.static_range(TILES):
            total += tl.load(patches + tile * (AREA * ROWS) + at, mask=seen, other=0.0)
    tl.store(out + image * (AREA * CIN) + element, total, mask=pixel < AREA)


def first_layer_backward(
    gp: Tensor,
    a: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    norm_parts: tuple[Tensor, Tensor],
    precision: str,
    *,
    parameters: bool = True,
    tangent: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    a_dot: Tensor | None = None,
    weights: tuple[Tensor, Tensor] | None = None,
    ga_dot: Tensor | None = None,
) -> Tensor | None:
    """The gradients of a block of at most :data:`contraction.FEW` input channels, or the tangents.

    Args:
        gp: cotangent of the block's output [S,B,H//2,W//2,C].
        a: [S,B,H,W,Cin].
        gamma: [S,C], contiguous for each student.
        beta: as gamma.
        xhat: normalised convolution [S,B,H,W,C].
        rstd: its 1/std [S,B,C].
        norm_parts: two [S,B,C], as of :func:`fastmtt.kernels.norm_backward.norm_backward`.
        precision: of :mod:`fastmtt.kernels.precision`.
        parameters: whether the weights' gradient is wanted.
        tangent: (gp_dot, xhat_dot, rstd_dot, gamma_dot); None for the gradient alone.
        a_dot: tangent of a, None for zero.
        weights: (w, w_dot), contiguous for each student, with ``ga_dot`` only.
        ga_dot: [S,B,H,W,Cin], where it is wanted.

    Returns:
        The images' parts [S,B,9*Cin*C] of the weights' gradient, if wanted.
    """
    students, images, height, width, cin = a.shape
    channels = xhat.shape[-1]
    gp_dot, xhat_dot, rstd_dot, gamma_dot = tangent or (None, None, None, None)
    w, w_dot = weights or (None, None)
    parts = a.new_empty(students, images, 9 * cin * channels) if parameters else None
    rows = rows_of(cin)

    def run(config: Config) -> None:
        tiles = triton.cdiv(channels, config.sizes["COLUMNS"])
        programs = students * images
        patches = None
        if ga_dot is not None:
            patches = a.new_empty(programs, tiles, height * width, rows)
        sizes = {"HEIGHT": height, "WIDTH": width, "CIN": cin, "ROWS": rows}
        _first_layer_backward[(programs * tiles,)](
            gp,
            gp_dot,
            xhat,
            xhat_dot,
            rstd,
            rstd_dot,
            gamma,
            gamma_dot,
            beta,
            a,
            a_dot,
            w,
            w_dot,
            parts,
            *norm_parts,
            patches,
            gamma.stride(0),
            0 if gamma_dot is None else gamma_dot.stride(0),
            beta.stride(0),
            0 if w is None else w.stride(0),
            0 if w_dot is None else w_dot.stride(0),
            images,
            CHANNELS=channels,
            TANGENT=tangent is not None,
            PRECISION=precision,
            **sizes,
            **config.launch,
        )
        if patches is not None:
            blocks = triton.cdiv(height * width * cin, 256)
            _fold[(programs, blocks)](patches, ga_dot, TILES=tiles, BLOCK=256, **sizes)

    asked = (parameters, tangent is not None, a_dot is not None, ga_dot is not None)
    key = (students * images, height, width, cin, channels, *asked, precision)
    run(choose("first_layer_backward", key, configs(channels, tangent is not None), run))
    return parts


def configs(channels: int, tangent: bool) -> list[Config]:
    """Channels and pixels a program works on at once."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    shapes = ((64, 32, 4), (64, 64, 8), (128, 32, 8), (32, 128, 8), (32, 32, 4), (32, 64, 4))
    for pixels, columns, warps in shapes:
        config = Config({"PIXELS": pixels, "COLUMNS": min(columns, most)}, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    always = ("gp", "xhat", "rstd", "gamma", "beta", "a", "w_parts", "gamma_parts", "beta_parts")
    dots = ("gp_dot", "xhat_dot", "rstd_dot", "gamma_dot")
    fold = ("w", "w_dot", "patches")
    strides = ("gamma_stride", "gamma_dot_stride", "beta_stride", "w_stride", "w_dot_stride")
    sizes = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "CHANNELS": 128, "ROWS": rows_of(3)}
    for tangent, precision in product((False, True), ("tf32",)):
        signature = dict.fromkeys(always, "*fp32") | dict.fromkeys((*strides, "images"), "i32")
        constants: dict[str, Any] = sizes | {"TANGENT": tangent, "PRECISION": precision}
        constants["a_dot"] = None
        if tangent:
            signature |= dict.fromkeys((*dots, *fold), "*fp32")
        else:
            constants |= dict.fromkeys((*dots, *fold))
        for config in configs(128, tangent):
            name = f"first_layer_backward {'tangent' if tangent else 'primal'} {precision}"
            yield name, _first_layer_backward, signature, constants, config
