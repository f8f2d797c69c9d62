"""Backward of pool, ReLU and instance norm: the cotangent gz of the convolution's output.

A program owns some channels of one image, so that the means over a plane are its own affair. A
plane that fits stays in registers between the sums and the result; a larger one is read twice.
The sums are the image's part of the gradients of gamma and beta as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.precision import rounded
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit
def read(
    planes,
    scale,
    shift,
    start,
    c,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    TANGENT: tl.constexpr,
):
    """Some pixels of xhat, of the cotangent behind the ReLU, and of the tangents of both.

    ``planes`` is where an image's (gp, gp_dot, xhat, xhat_dot) begin; scale and shift are gamma
    and beta of the channels c, all three [1, channels]. Returns (x, x_dot, g, g_dot), zero outside
    the plane; x_dot is x and g_dot is g where there is no TANGENT.
    """
    gp, gp_dot, xhat, xhat_dot = planes
    pixel = start + tl.arange(0, PIXELS)
    y, x = pixel // (2 * WIDTH), pixel % WIDTH // 2
    inside = (pixel < HEIGHT * WIDTH)[:, None] & (c < CHANNELS)
    pooled = inside & ((y < HEIGHT // 2) & (x < WIDTH // 2))[:, None]
    at = pixel[:, None] * CHANNELS + c
    pooled_at = (y * (WIDTH // 2) + x)[:, None] * CHANNELS + c
    value = tl.load(xhat + at, mask=inside, other=0.0)
    passes = value * scale + shift > 0
    g = tl.where(passes, 0.25 * tl.load(gp + pooled_at, mask=pooled, other=0.0), 0.0)
    if TANGENT:
        value_dot = tl.load(xhat_dot + at, mask=inside, other=0.0)
        g_dot = tl.where(passes, 0.25 * tl.load(gp_dot + pooled_at, mask=pooled, other=0.0), 0.0)
    else:
        value_dot, g_dot = value, g
    return value, value_dot, g, g_dot


@triton.jit
def products(x, x_dot, g, g_dot):
    """What is summed over a plane: g and g x, the gradients of beta and gamma, and tangents."""
    return g, g * x, g_dot, g_dot * x + g * x_dot


@triton.jit
def image_of(
    tensors,
    strides,
    image,
    student,
    c,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    TANGENT: tl.constexpr,
):
    """Where an image's planes begin, and its (gamma, gamma_dot, rstd, rstd_dot, beta) of c."""
    gp, gp_dot, xhat, xhat_dot, rstd, rstd_dot, gamma, gamma_dot, beta = tensors
    gamma_stride, gamma_dot_stride, beta_stride = strides
    exists = c < CHANNELS
    pooled_plane = image * ((HEIGHT // 2) * (WIDTH // 2) * CHANNELS)
    plane = image * (HEIGHT * WIDTH * CHANNELS)
    scale = tl.load(gamma + student * gamma_stride + c, mask=exists, other=0.0)
    shift = tl.load(beta + student * beta_stride + c, mask=exists, other=0.0)
    r = tl.load(rstd + image * CHANNELS + c, mask=exists, other=0.0)
    if TANGENT:
        planes = (gp + pooled_plane, gp_dot + pooled_plane, xhat + plane, xhat_dot + plane)
        scale_dot = tl.load(gamma_dot + student * gamma_dot_stride + c, mask=exists, other=0.0)
        r_dot = tl.load(rstd_dot + image * CHANNELS + c, mask=exists, other=0.0)
    else:
        planes = (gp + pooled_plane, gp, xhat + plane, xhat)
        scale_dot, r_dot = scale, r
    return planes, (scale, scale_dot, r, r_dot, shift)


@triton.jit
def plane_sums(
    planes,
    statistics,
    c,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    TANGENT: tl.constexpr,
):
    """The :func:`products` summed over a plane, [1, channels] each, and the last pixels read."""
    scale, _, _, _, shift = statistics
    x, x_dot, g, g_dot = read(planes, scale, shift, 0, c, HEIGHT, WIDTH, CHANNELS, PIXELS, TANGENT)
    all_g, all_gx, all_g_dot, all_gx_dot = products(x, x_dot, g, g_dot)
    for start in range(PIXELS, HEIGHT * WIDTH, PIXELS):
        x, x_dot, g, g_dot = read(
            planes, scale, shift, start, c, HEIGHT, WIDTH, CHANNELS, PIXELS, TANGENT
        )
        more_g, more_gx, more_g_dot, more_gx_dot = products(x, x_dot, g, g_dot)
        all_g += more_g
        all_gx += more_gx
        all_g_dot += more_g_dot
        all_gx_dot += more_gx_dot
    sum_g = tl.sum(all_g, 0, keep_dims=True)
    sum_gx = tl.sum(all_gx, 0, keep_dims=True)
    sum_g_dot = tl.sum(all_g_dot, 0, keep_dims=True)
    sum_gx_dot = tl.sum(all_gx_dot, 0, keep_dims=True)
    return (sum_g, sum_gx, sum_g_dot, sum_gx_dot), (x, x_dot, g, g_dot)


@triton.jit
def write_parts(sums, gamma_parts, beta_parts, image, c, CHANNELS: tl.constexpr, TANGENT):
    """An image's part of the gradients of gamma and beta, or of the gradients' tangents."""
    sum_g, sum_gx, sum_g_dot, sum_gx_dot = sums
    part = image * CHANNELS + c
    tl.store(beta_parts + part, sum_g_dot if TANGENT else sum_g, mask=c < CHANNELS)
    tl.store(gamma_parts + part, sum_gx_dot if TANGENT else sum_gx, mask=c < CHANNELS)


@triton.jit
def output_cotangents(tile, sums, statistics, AREA: tl.constexpr, TANGENT: tl.constexpr):
    """(gz, gz_dot) of some pixels; outside a plane they are of no meaning."""
    x, x_dot, g, g_dot = tile
    sum_g, sum_gx, sum_g_dot, sum_gx_dot = sums
    scale, scale_dot, r, r_dot, _ = statistics
    inner = scale * (g - (sum_g + x * sum_gx) / AREA)  # gz but for rstd
    gz = r * inner
    if TANGENT:
        inner_dot = scale * (g_dot - (sum_g_dot + x * sum_gx_dot + x_dot * sum_gx) / AREA)
        inner_dot += scale_dot * (g - (sum_g + x * sum_gx) / AREA)
        return gz, r_dot * inner + r * inner_dot
    else:
        return gz, gz


@triton.jit
def _write(
    value,
    target,
    start,
    c,
    AREA: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pixel = start + tl.arange(0, PIXELS)[:, None]
    inside = (pixel < AREA) & (c < CHANNELS)
    tl.store(target + pixel * CHANNELS + c, rounded(value, PRECISION), mask=inside)


@triton.jit
def _write_both(
    tile, sums, statistics, gz, gz_dot, start, c, AREA, CHANNELS, PIXELS, TANGENT, PRECISION
):
    value, value_dot = output_cotangents(tile, sums, statistics, AREA, TANGENT)
    if gz is not None:
        _write(value, gz, start, c, AREA, CHANNELS, PIXELS, PRECISION)
    if TANGENT:
        _write(value_dot, gz_dot, start, c, AREA, CHANNELS, PIXELS, PRECISION)


@triton.jit(do_not_specialize=["images"])
def _norm_backward(
    gp,
    gp_dot,
    xhat,
    xhat_dot,
    rstd,
    rstd_dot,
    gamma,
    gamma_dot,
    beta,
    gz,
    gz_dot,
    gamma_parts,
    beta_parts,
    gamma_stride,
    gamma_dot_stride,
    beta_stride,
    images,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    TANGENT: tl.constexpr,
    PRECISION: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    AREA: tl.constexpr = HEIGHT * WIDTH
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    image = (tl.program_id(0) // tiles).to(tl.int64)
    student = image // images
    c = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    tensors = (gp, gp_dot, xhat, xhat_dot, rstd, rstd_dot, gamma, gamma_dot, beta)
    strides = (gamma_stride, gamma_dot_stride, beta_stride)
    planes, statistics = image_of(
        tensors, strides, image, student, c, HEIGHT, WIDTH, CHANNELS, TANGENT
    )
    sums, tile = plane_sums(planes, statistics, c, HEIGHT, WIDTH, CHANNELS, PIXELS, TANGENT)
    write_parts(sums, gamma_parts, beta_parts, image, c, CHANNELS, TANGENT)
    if gz is not None:
        gz += image * (AREA * CHANNELS)
    if TANGENT:
        gz_dot += image * (AREA * CHANNELS)

    # the last pixels are still in registers: all of them, where a plane fits
    last: tl.constexpr = (AREA - 1) // PIXELS * PIXELS
    _write_both(
        tile, sums, statistics, gz, gz_dot, last, c, AREA, CHANNELS, PIXELS, TANGENT, PRECISION
    )
    for start in range(0, last, PIXELS):
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
        _write_both(
            tile, sums, statistics, gz, gz_dot, start, c, AREA, CHANNELS, PIXELS, TANGENT, PRECISION
        )


def norm_backward(
    gp: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    gz: Tensor | None,
    parts: Sequence[Tensor],
    precision: str,
    tangent: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    gz_dot: Tensor | None = None,
) -> None:
    """Write gz, or gz_dot and, where wanted, gz, rounded to the precision they are multiplied in.

    Args:
        gp: cotangent of the block's output [S,B,H//2,W//2,C].
        xhat: normalised convolution [S,B,H,W,C].
        rstd: its 1/std [S,B,C].
        gamma: [S,C], contiguous for each student.
        beta: as gamma.
        gz: [S,B,H,W,C], float32 or bfloat16; None where only its tangent is wanted.
        parts: two [S,B,C], each image's part of the gradients of gamma and beta, or of the
            gradients' tangents where there is one.
        precision: of :mod:`fastmtt.kernels.precision`.
        tangent: (gp_dot, xhat_dot, rstd_dot, gamma_dot); None for the gradient alone.
        gz_dot: as gz; with ``tangent`` only.
    """
    students, images, height, width, channels = xhat.shape
    gp_dot, xhat_dot, rstd_dot, gamma_dot = tangent or (None, None, None, None)

    def run(config: Config) -> None:
        tiles = triton.cdiv(channels, config.sizes["COLUMNS"])
        _norm_backward[(students * images * tiles,)](
            gp,
            gp_dot,
            xhat,
            xhat_dot,
            rstd,
            rstd_dot,
            gamma,
            gamma_dot,
            beta,
            gz,
            gz_dot,
            *parts,
            gamma.stride(0),
            gamma_dot.stride(0) if gamma_dot is not None else 0,
            beta.stride(0),
            images,
            HEIGHT=height,
            WIDTH=width,
            CHANNELS=channels,
            TANGENT=tangent is not None,
            PRECISION=precision,
            **config.launch,
        )

    wanted = (gz is not None, gz_dot is not None)
    key = (students * images, height, width, channels, *wanted, precision)
    run(choose("norm_backward", key, configs(height * width, channels, tangent is not None), run))


def configs(area: int, channels: int, tangent: bool) -> list[Config]:
    """A whole plane of some channels, 16 or 32 elements of each tensor a thread; else tiles."""
    whole, most = max(triton.next_power_of_2(area), 16), triton.next_power_of_2(channels)
    found: dict[str, Config] = {}
    threads = ((4, 16), (8, 16), (8, 32)) if tangent else ((4, 16), (8, 16), (8, 32), (16, 32))
    for warps, elements in threads:
        columns = min(warps * 32 * elements // whole, most)
        if columns >= min(8, most):  # 32 bytes of a pixel are what memory gives at the least
            config = Config({"PIXELS": whole, "COLUMNS": columns}, warps, 1)
            found[str(config)] = config
    if whole >= 1024:
        for pixels in (64, 128):
            config = Config({"PIXELS": pixels, "COLUMNS": min(32, most)}, 8, 1)
            found[str(config)] = config
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    always = ("gp", "xhat", "rstd", "gamma", "beta", "gamma_parts", "beta_parts")
    dots = ("gp_dot", "xhat_dot", "rstd_dot", "gamma_dot", "gz_dot")
    integers = ("gamma_stride", "gamma_dot_stride", "beta_stride", "images")
    for side, tangent, precision in product((32, 16, 8), (False, True), ("tf32", "bf16")):
        stored = "*bf16" if precision == "bf16" else "*fp32"
        signature = dict.fromkeys(always, "*fp32") | dict.fromkeys(integers, "i32")
        signature["gz"] = stored
        constants: dict[str, Any] = {"HEIGHT": side, "WIDTH": side, "CHANNELS": 128}
        constants |= {"TANGENT": tangent, "PRECISION": precision}
        if tangent:
            signature |= dict.fromkeys(dots, "*fp32") | {"gz_dot": stored}
        else:
            constants |= dict.fromkeys(dots)
        for config in configs(side * side, 128, tangent):
            name = f"norm_backward {side}x{side} {'tangent' if tangent else 'primal'} {precision}"
            yield name, _norm_backward, signature, constants, config
