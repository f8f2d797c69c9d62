"""The tangent of the images' gradient in a network's first block, whose input stands still.

It is that of every pixel's patch, folded back onto the images. A patch's is
``w_dot . gz + w . gz_dot``, and gz and gz_dot, as in :mod:`fastmtt.kernels.first_layer_gradients`,
are linear in the cotangent behind the ReLU, its tangent, and the patch itself: the last factor is
one small matrix an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.first_layer_gradients import Parts, Tangent
from fastmtt.kernels.norm_backward import image_of, read
from fastmtt.kernels.patches import fold, patches_and_one, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit
def _mean(parts, count, c, AREA: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """Over a plane, [1, COLUMNS], of what the parts have the sums of."""
    total = tl.zeros((1, COLUMNS), tl.float32)
    for part in range(count):
        total += tl.load(parts + part * CHANNELS + c, mask=c < CHANNELS, other=0.0)
    return total / AREA


@triton.jit(do_not_specialize=["images", "parts"])
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
    gx_parts,
    g_parts,
    gx_dot_parts,
    g_dot_parts,
    patches,
    gamma_stride,
    gamma_dot_stride,
    beta_stride,
    w_stride,
    w_dot_stride,
    images,
    parts,
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
    row = tl.arange(0, ROWS)
    one = (row == 9 * CIN)[:, None]
    own = image * parts * CHANNELS
    w += student * w_stride
    w_dot += student * w_dot_stride
    tensors = (gp, gp_dot, xhat, xhat, rstd, rstd_dot, gamma, gamma_dot, beta)
    strides = (gamma_stride, gamma_dot_stride, beta_stride)

    found = tl.zeros((PIXELS, ROWS), tl.float32)
    of_patch = tl.zeros((ROWS, ROWS), tl.float32)  # what is left when those of g are gone
    for first in range(0, CHANNELS, COLUMNS):
        c = (first + tl.arange(0, COLUMNS))[None, :]
        planes, statistics = image_of(
            tensors, strides, image, student, c, HEIGHT, WIDTH, CHANNELS, True
        )
        scale, scale_dot, r, r_dot, shift = statistics
        _, _, g, g_dot = read(planes, scale, shift, start, c, HEIGHT, WIDTH, CHANNELS, PIXELS, True)
        weights = weights_of(w, row, c, CIN, CHANNELS)
        weights_dot = weights_of(w_dot, row, c, CIN, CHANNELS)
        of_g = r * scale * weights_dot + (r_dot * scale + r * scale_dot) * weights
        of_g = tl.trans(rounded(of_g, PRECISION))
        of_g_dot = tl.trans(rounded(r * scale * weights, PRECISION))
        found = multiply(rounded(g, PRECISION), of_g, found, PRECISION)
        found = multiply(rounded(g_dot, PRECISION), of_g_dot, found, PRECISION)

        g_mean = _mean(g_parts + own, parts, c, AREA, CHANNELS, COLUMNS)
        gx_mean = _mean(gx_parts + own, parts, c, AREA, CHANNELS, COLUMNS)
        g_dot_mean = _mean(g_dot_parts + own, parts, c, AREA, CHANNELS, COLUMNS)
        gx_dot_mean = _mean(gx_dot_parts + own, parts, c, AREA, CHANNELS, COLUMNS)
        inner_dot = r * weights_dot + r_dot * weights
        left = tl.where(one, g_mean, gx_mean * r * weights)
        left_dot = tl.where(one, g_dot_mean, gx_dot_mean * r * weights + gx_mean * inner_dot)
        of_patch = multiply(rounded(left, PRECISION), of_g, of_patch, PRECISION)
        of_patch = multiply(rounded(left_dot, PRECISION), of_g_dot, of_patch, PRECISION)

    centre = tl.load(mean + image * ROWS + row)
    pixel = start + tl.arange(0, PIXELS)
    a += image * (AREA * CIN)
    patch = rounded(patches_and_one(a, pixel, centre, HEIGHT, WIDTH, CIN, ROWS), PRECISION)
    found = multiply(patch, rounded(-of_patch, PRECISION), found, PRECISION)
    patches += image * (AREA * ROWS)
    place = patches + pixel[:, None] * ROWS + row[None, :]
    tl.store(place, found, mask=(pixel < AREA)[:, None])


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
    sums: Parts,
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
    channels, area, rows = xhat.shape[-1], height * width, rows_of(cin)
    patches = a.new_empty(students * images, 1, area, rows)

    def run(config: Config) -> None:
        _patch_cotangents[(students * images * triton.cdiv(area, config.sizes["PIXELS"]),)](
            gp,
            tangent.gp,
            xhat,
            rstd,
            tangent.rstd,
            gamma,
            tangent.gamma,
            beta,
            a,
            mean,
            w,
            tangent.w,
            *sums.of_norm,
            *sums.norm,
            patches,
            *(t.stride(0) for t in (gamma, tangent.gamma, beta, w, tangent.w)),
            images,
            sums.w.shape[1] // images,
            HEIGHT=height,
            WIDTH=width,
            CIN=cin,
            CHANNELS=channels,
            PRECISION=precision,
            ROWS=rows,
            **config.launch,
        )

    key = (students * images, height, width, cin, channels, precision)
    run(choose("image_tangent", key, configs(channels), run))
    fold(patches, ga_dot)


def configs(channels: int) -> list[Config]:
    """Pixels of a program, and channels it takes at once."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    shapes = ((128, 32, 4), (64, 64, 4), (128, 64, 8), (64, 32, 4), (256, 32, 8))
    for pixels, columns, warps in shapes:
        config = Config({"PIXELS": pixels, "COLUMNS": min(columns, most)}, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    constants: dict[str, Any] = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "ROWS": rows_of(3)}
    constants |= {"CHANNELS": 128, "PRECISION": "tf32"}
    integers = ("images", "parts")
    signature = {
        name: "i32" if name.endswith("stride") or name in integers else "*fp32"
        for name in _patch_cotangents.arg_names
    }
    for config in configs(128):
        yield "patch cotangents tf32", _patch_cotangents, signature, constants, config
