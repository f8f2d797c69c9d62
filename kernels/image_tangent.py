"""The tangent of the images' gradient in a network's first block.

A pixel's gz and gz_dot are made from the sums over planes that
:mod:`fastmtt.kernels.first_layer_backward` leaves, and multiplied at once with the weights: the
cotangent of every pixel's patch, which a second kernel folds back onto the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.norm_backward import image_of, output_cotangents, read
from fastmtt.kernels.patches import patches_at, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit(do_not_specialize=["images"])
def _patch_cotangents(
    gp,
    gp_dot,
    xhat,
    rstd,
    rstd_dot,
    gamma,
    gamma_dot,
    beta,
    a,
    mean,
    w,
    w_dot,
    gx_sums,
    g_sums,
    gx_dot_sums,
    g_dot_sums,
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
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns some pixels of an image and takes its channels tile by tile."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    parts: tl.constexpr = (AREA + PIXELS - 1) // PIXELS
    image = (tl.program_id(0) // parts).to(tl.int64)
    start = tl.program_id(0) % parts * PIXELS
    student = image // images
    row = tl.arange(0, ROWS)
    centre = tl.load(mean + image * ROWS + row)
    a += image * (AREA * CIN)
    pixel = start + tl.arange(0, PIXELS)
    present = pixel < AREA
    patch = patches_at(a, pixel // WIDTH, pixel % WIDTH, present, centre, HEIGHT, WIDTH, CIN, ROWS)
    patch = rounded(patch, PRECISION)
    tensors = (gp, gp_dot, xhat, xhat, rstd, rstd_dot, gamma, gamma_dot, beta)
    strides = (gamma_stride, gamma_dot_stride, beta_stride)
    found = tl.zeros((PIXELS, ROWS), tl.float32)
    for first in range(0, CHANNELS, COLUMNS):
        c = (first + tl.arange(0, COLUMNS))[None, :]
        planes, statistics = image_of(
            tensors, strides, image, student, c, HEIGHT, WIDTH, CHANNELS, True
        )
        scale, _, r, r_dot, shift = statistics
        x, _, g, g_dot = read(planes, scale, shift, start, c, HEIGHT, WIDTH, CHANNELS, PIXELS, True)
        weights = weights_of(w + student * w_stride, row, c, CIN, CHANNELS)
        weights_dot = weights_of(w_dot + student * w_dot_stride, row, c, CIN, CHANNELS)
        inner_dot = rounded(r * weights_dot + r_dot * weights, PRECISION)
        x_dot = multiply(patch, inner_dot, tl.zeros((PIXELS, COLUMNS), tl.float32), PRECISION)
        at, exists = image * CHANNELS + c, c < CHANNELS
        sums = (
            tl.load(g_sums + at, mask=exists, other=0.0),
            tl.load(gx_sums + at, mask=exists, other=0.0),
            tl.load(g_dot_sums + at, mask=exists, other=0.0),
            tl.load(gx_dot_sums + at, mask=exists, other=0.0),
        )
        gz, gz_dot = output_cotangents((x, x_dot, g, g_dot), sums, statistics, AREA, True)
        weights, weights_dot = rounded(weights, PRECISION), rounded(weights_dot, PRECISION)
        found = multiply(rounded(gz_dot, PRECISION), tl.trans(weights), found, PRECISION)
        found = multiply(rounded(gz, PRECISION), tl.trans(weights_dot), found, PRECISION)
    patches += image * (AREA * ROWS)
    tl.store(patches + pixel[:, None] * ROWS + row[None, :], found, mask=present[:, None])


@triton.jit
def _fold(
    patches,
    out,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """An image's pixels sum what the patches they are part of hold for them."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    image = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = element % CIN, element // CIN
    patches += image * (AREA * ROWS)
    total = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(9):
        y, x = pixel // WIDTH - (tap // 3 - 1), pixel % WIDTH - (tap % 3 - 1)
        seen = (pixel < AREA) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
        at = (y * WIDTH + x) * ROWS + tap * CIN + channel
        total += tl.load(patches + at, mask=seen, other=0.0)
    tl.store(out + image * (AREA * CIN) + element, total, mask=pixel < AREA)


def image_tangent(
    gp: Tensor,
    a: Tensor,
    mean: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    tangent: tuple[Tensor, Tensor, Tensor, Tensor],
    sums: tuple[Tensor, Tensor, Tensor, Tensor],
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
        tangent: (gp_dot, w_dot, rstd_dot, gamma_dot).
        sums: S_gx, S_g and their tangents, [S,B,C] each.
        ga_dot: where the result goes [S,B,H,W,Cin].
        precision: of :mod:`fastmtt.kernels.precision`.
    """
    students, images, height, width, cin = a.shape
    channels, area = xhat.shape[-1], height * width
    gp_dot, w_dot, rstd_dot, gamma_dot = tangent
    sizes = {"HEIGHT": height, "WIDTH": width, "CIN": cin, "ROWS": rows_of(cin)}
    patches = a.new_empty(students * images, area, sizes["ROWS"])

    def run(config: Config) -> None:
        _patch_cotangents[(students * images * triton.cdiv(area, config.sizes["PIXELS"]),)](
            gp,
            gp_dot,
            xhat,
            rstd,
            rstd_dot,
            gamma,
            gamma_dot,
            beta,
            a,
            mean,
            w,
            w_dot,
            *sums,
            patches,
            *(t.stride(0) for t in (gamma, gamma_dot, beta, w, w_dot)),
            images,
            CHANNELS=channels,
            PRECISION=precision,
            **sizes,
            **config.launch,
        )

    key = (students * images, height, width, cin, channels, precision)
    run(choose("image_tangent", key, configs(channels), run))
    block = 256
    _fold[(students * images, triton.cdiv(area * cin, block))](
        patches, ga_dot, BLOCK=block, **sizes
    )


def configs(channels: int) -> list[Config]:
    """Pixels of a program, and channels it takes at once."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    shapes = ((64, 16, 4), (64, 16, 8), (128, 16, 8), (32, 16, 4))
    for pixels, columns, warps in shapes:
        config = Config({"PIXELS": pixels, "COLUMNS": min(columns, most)}, warps, 1)
        found.setdefault(str(config), config)
    wide = Config({"PIXELS": 64, "COLUMNS": min(32, most)}, 8, 1, capability=90)
    found.setdefault(str(wide), wide)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    constants: dict[str, Any] = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "ROWS": rows_of(3)}
    fold = constants | {"BLOCK": 256}
    constants |= {"CHANNELS": 128, "PRECISION": "tf32"}
    names = _patch_cotangents.arg_names
    signature = {n: "i32" if n.endswith("stride") or n == "images" else "*fp32" for n in names}
    for config in configs(128):
        yield "patch cotangents tf32", _patch_cotangents, signature, constants, config
    yield "fold", _fold, {"patches": "*fp32", "out": "*fp32"}, fold, Config()
