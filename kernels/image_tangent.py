"""The tangent of the images' gradient in a network's first block, whose input stands still.

It is that of every pixel's patch, folded back onto the images. A patch's is ``w_dot . gz +
w . gz_dot``. With gz as in :mod:`fastmtt.kernels.first_layer_gradients` this is linear in the
cotangent behind the ReLU, in its tangent and in the patch, and an image has the factors once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.first_layer_gradients import Gradients, Tangent
from fastmtt.kernels.norm_backward import read
from fastmtt.kernels.patches import fold, patches_and_one, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit(do_not_specialize=["images"])
def _factors(
    rstd,
    rstd_dot,
    gamma,
    gamma_dot,
    w,
    w_dot,
    gx_sums,
    g_sums,
    gx_dot_sums,
    g_dot_sums,
    of_g,
    of_g_dot,
    of_patch,
    gamma_stride,
    gamma_dot_stride,
    w_stride,
    w_dot_stride,
    images,
    AREA: tl.constexpr,
    CIN: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Of an image: that of the patch, and of the one behind it, is what the means take off."""
    image = tl.program_id(0).to(tl.int64)
    student = image // images
    row = tl.arange(0, ROWS)
    one = (row == 9 * CIN)[:, None]
    total = tl.zeros((ROWS, ROWS), tl.float32)
    for first in range(0, CHANNELS, COLUMNS):
        c = (first + tl.arange(0, COLUMNS))[None, :]
        exists, plane = c < CHANNELS, image * CHANNELS + c
        scale = tl.load(gamma + student * gamma_stride + c, mask=exists, other=0.0)
        scale_dot = tl.load(gamma_dot + student * gamma_dot_stride + c, mask=exists, other=0.0)
        r = tl.load(rstd + plane, mask=exists, other=0.0)
        r_dot = tl.load(rstd_dot + plane, mask=exists, other=0.0)
        weights = weights_of(w + student * w_stride, row, c, CIN, CHANNELS)
        weights_dot = weights_of(w_dot + student * w_dot_stride, row, c, CIN, CHANNELS)
        for_g_dot = r * scale * weights
        for_g = r * scale * weights_dot + (r_dot * scale + r * scale_dot) * weights
        for_g, for_g_dot = rounded(for_g, PRECISION), rounded(for_g_dot, PRECISION)
        at = image * (ROWS * CHANNELS) + row[:, None] * CHANNELS + c
        tl.store(of_g + at, for_g, mask=exists)
        tl.store(of_g_dot + at, for_g_dot, mask=exists)

        g = tl.load(g_sums + plane, mask=exists, other=0.0) / -AREA
        gx = tl.load(gx_sums + plane, mask=exists, other=0.0) / -AREA
        g_dot = tl.load(g_dot_sums + plane, mask=exists, other=0.0) / -AREA
        gx_dot = tl.load(gx_dot_sums + plane, mask=exists, other=0.0) / -AREA
        inner, inner_dot = r * weights, r * weights_dot + r_dot * weights
        left = rounded(tl.where(one, g, gx * inner), PRECISION)
        left_dot = rounded(tl.where(one, g_dot, gx_dot * inner + gx * inner_dot), PRECISION)
        total = multiply(left, tl.trans(for_g), total, PRECISION)
        total = multiply(left_dot, tl.trans(for_g_dot), total, PRECISION)
    square = row[:, None] * ROWS + row[None, :]
    tl.store(of_patch + image * (ROWS * ROWS) + square, rounded(total, PRECISION))


@triton.jit(do_not_specialize=["images"])
def _patch_cotangents(
    gp,
    gp_dot,
    xhat,
    gamma,
    beta,
    a,
    mean,
    of_g,
    of_g_dot,
    of_patch,
    patches,
    gamma_stride,
    beta_stride,
    images,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns PIXELS pixels of an image and takes its channels tile by tile."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    blocks: tl.constexpr = (AREA + PIXELS - 1) // PIXELS
    image = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * PIXELS
    student = image // images
    row = tl.arange(0, ROWS)[None, :]
    pooled_plane = image * ((HEIGHT // 2) * (WIDTH // 2) * CHANNELS)
    xhat += image * (AREA * CHANNELS)
    planes = (gp + pooled_plane, gp_dot + pooled_plane, xhat, xhat)
    gamma += student * gamma_stride
    beta += student * beta_stride
    of_g += image * (ROWS * CHANNELS)
    of_g_dot += image * (ROWS * CHANNELS)

    centre = tl.load(mean + image * ROWS + tl.arange(0, ROWS))
    pixel = start + tl.arange(0, PIXELS)
    a += image * (AREA * CIN)
    patch = rounded(patches_and_one(a, pixel, centre, HEIGHT, WIDTH, CIN, ROWS), PRECISION)
    square = tl.arange(0, ROWS)[:, None] * ROWS + row
    factor = tl.load(of_patch + image * (ROWS * ROWS) + square)
    found = multiply(patch, factor, tl.zeros((PIXELS, ROWS), tl.float32), PRECISION)
    for first in range(0, CHANNELS, COLUMNS):
        c = (first + tl.arange(0, COLUMNS))[None, :]
        scale = tl.load(gamma + c, mask=c < CHANNELS, other=0.0)
        shift = tl.load(beta + c, mask=c < CHANNELS, other=0.0)
        _, _, g, g_dot = read(planes, scale, shift, start, c, HEIGHT, WIDTH, CHANNELS, PIXELS, True)
        down = (first + tl.arange(0, COLUMNS))[:, None]
        at = row * CHANNELS + down
        factor_g = tl.load(of_g + at, mask=down < CHANNELS, other=0.0)
        factor_g_dot = tl.load(of_g_dot + at, mask=down < CHANNELS, other=0.0)
        found = multiply(rounded(g, PRECISION), factor_g, found, PRECISION)
        found = multiply(rounded(g_dot, PRECISION), factor_g_dot, found, PRECISION)
    patches += image * (AREA * ROWS)
    tl.store(patches + pixel[:, None] * ROWS + row, found, mask=(pixel < AREA)[:, None])


def image_tangent(
    gp: Tensor,
    a: Tensor,
    mean: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    tangent: Tangent,
    sums: Gradients,
    ga_dot: Tensor,
    precision: str,
) -> None:
    """Write ``ga_dot`` of a block of few input channels whose input has no tangent.

    Args:
        gp: cotangent of the block's output [S,B,H//2,W//2,C].
        a: [S,B,H,W,Cin].
        mean: of its patches, see :func:`fastmtt.kernels.patches.patch_statistics`.
        w: [S,3,3,Cin,C], contiguous for each student.
        gamma: [S,C], likewise.
        beta: as gamma.
        xhat: the normalised convolution [S,B,H,W,C] of these a and w.
        rstd: its 1/std [S,B,C].
        tangent: what moves.
        sums: of :func:`fastmtt.kernels.first_layer_gradients.gradients` with this tangent.
        ga_dot: where the result goes [S,B,H,W,Cin].
        precision: of :mod:`fastmtt.kernels.precision`.
    """
    students, images, height, width, cin = a.shape
    channels, area, rows, count = xhat.shape[-1], height * width, rows_of(cin), students * images
    common: dict[str, Any] = {
        "CIN": cin,
        "CHANNELS": channels,
        "PRECISION": precision,
        "ROWS": rows,
    }
    factors = (
        a.new_empty(count, rows, channels),
        a.new_empty(count, rows, channels),
        a.new_empty(count, rows, rows),
    )
    _factors[(count,)](
        rstd,
        tangent.rstd,
        gamma,
        tangent.gamma,
        w,
        tangent.w,
        *sums.of_norm,
        *sums.norm,
        *factors,
        *(t.stride(0) for t in (gamma, tangent.gamma, w, tangent.w)),
        images,
        AREA=area,
        COLUMNS=_columns(channels),
        **common,
        **_ONCE.launch,
    )
    patches = a.new_empty(count, 1, area, rows)

    def run(config: Config) -> None:
        _patch_cotangents[(count * triton.cdiv(area, config.sizes["PIXELS"]),)](
            gp,
            tangent.gp,
            xhat,
            gamma,
            beta,
            a,
            mean,
            *factors,
            patches,
            gamma.stride(0),
            beta.stride(0),
            images,
            HEIGHT=height,
            WIDTH=width,
            **common,
            **config.launch,
        )

    key = (count, height, width, cin, channels, precision)
    run(choose("image_tangent", key, configs(channels), run))
    fold(patches, ga_dot)


_ONCE = Config(stages=1)


def _columns(channels: int) -> int:
    """Channels of which factors are made at once."""
    return min(32, max(16, triton.next_power_of_2(channels)))


def configs(channels: int) -> list[Config]:
    """Pixels of a program, and channels it takes at once."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    shapes = ((128, 32, 8), (64, 64, 8), (64, 32, 4), (128, 64, 8), (32, 64, 4))
    for pixels, columns, warps in shapes:
        config = Config({"PIXELS": pixels, "COLUMNS": min(columns, most)}, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    sizes: dict[str, Any] = {"CIN": 3, "CHANNELS": 128, "ROWS": rows_of(3), "PRECISION": "tf32"}

    def signature(kernel: Any) -> dict[str, str]:
        return {
            name: "i32" if name.endswith("stride") or name == "images" else "*fp32"
            for name in kernel.arg_names
        }

    constants = sizes | {"AREA": 1024, "COLUMNS": _columns(128)}
    yield "factors tf32", _factors, signature(_factors), constants, _ONCE
    constants = sizes | {"HEIGHT": 32, "WIDTH": 32}
    for config in configs(128):
        kernel = _patch_cotangents
        yield "patch cotangents tf32", kernel, signature(kernel), constants, config
