"""Gradients of a network's first block's parameters, and their tangents, from one look at a plane.

The cotangent gz of the convolution's output is never there. Over a plane, with x = xhat, S_v the
sum of v, and g the cotangent behind the ReLU,

    gz = r gamma (g - (S_g + x S_gx) / AREA),    x = patch . (r w),

of patches less their mean. So the weights' gradient, gz's products with patches, follows from those
of g and from the patches' covariance, and so do tangents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.norm_backward import image_of, read, write_parts
from fastmtt.kernels.patches import nearly_exact, patches_at, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit(do_not_specialize=["images"])
def _first_layer_backward(
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
    covariance,
    w,
    w_dot,
    w_parts,
    gamma_parts,
    beta_parts,
    g_sums,
    gx_sums,
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
    """A program owns some channels of an image."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    image = (tl.program_id(0) // tiles).to(tl.int64)
    student = image // images
    c = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    tensors = (gp, gp_dot, xhat, xhat, rstd, rstd_dot, gamma, gamma_dot, beta)
    strides = (gamma_stride, gamma_dot_stride, beta_stride)
    planes, statistics = image_of(
        tensors, strides, image, student, c, HEIGHT, WIDTH, CHANNELS, TANGENT
    )
    scale, scale_dot, r, r_dot, shift = statistics
    row = tl.arange(0, ROWS)
    centre = tl.load(mean + image * ROWS + row)
    a += image * (AREA * CIN)

    sum_g = tl.zeros((1, COLUMNS), tl.float32)
    sum_gx = tl.zeros((1, COLUMNS), tl.float32)
    sum_g_dot = tl.zeros((1, COLUMNS), tl.float32)
    sum_gx_dot = tl.zeros((1, COLUMNS), tl.float32)
    with_g = tl.zeros((ROWS, COLUMNS), tl.float32)
    with_g_dot = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, AREA, PIXELS):
        x, _, g, g_dot = read(
            planes, scale, shift, start, c, HEIGHT, WIDTH, CHANNELS, PIXELS, TANGENT
        )
        pixel = start + tl.arange(0, PIXELS)
        patch = patches_at(
            a, pixel // WIDTH, pixel % WIDTH, pixel < AREA, centre, HEIGHT, WIDTH, CIN, ROWS
        )
        patch = tl.trans(rounded(patch, PRECISION))
        sum_g += tl.sum(g, 0, keep_dims=True)
        sum_gx += tl.sum(g * x, 0, keep_dims=True)
        with_g = multiply(patch, rounded(g, PRECISION), with_g, PRECISION)
        if TANGENT:
            sum_g_dot += tl.sum(g_dot, 0, keep_dims=True)
            sum_gx_dot += tl.sum(g_dot * x, 0, keep_dims=True)
            with_g_dot = multiply(patch, rounded(g_dot, PRECISION), with_g_dot, PRECISION)

    weights = weights_of(w + student * w_stride, row, c, CIN, CHANNELS)
    spread = tl.load(covariance + image * (ROWS * ROWS) + row[:, None] * ROWS + row[None, :])
    with_gz = with_g - sum_gx * (r * nearly_exact(spread, weights, PRECISION))  # but for r gamma
    if TANGENT:
        weights_dot = weights_of(w_dot + student * w_dot_stride, row, c, CIN, CHANNELS)
        inner_dot = r * weights_dot + r_dot * weights  # x_dot is a patch times these
        sum_gx_dot += tl.sum(with_g * inner_dot, 0, keep_dims=True)
        with_gz_dot = with_g_dot - sum_gx * nearly_exact(spread, inner_dot, PRECISION)
        with_gz_dot -= sum_gx_dot * (r * nearly_exact(spread, weights, PRECISION))
        result = (r_dot * scale + r * scale_dot) * with_gz + r * scale * with_gz_dot
        sums = (sum_g, sum_gx, sum_g_dot, sum_gx_dot)
        tl.store(g_sums + image * CHANNELS + c, sum_g, mask=c < CHANNELS)
        tl.store(gx_sums + image * CHANNELS + c, sum_gx, mask=c < CHANNELS)
    else:
        result = r * scale * with_gz
        sums = (sum_g, sum_gx, sum_g, sum_gx)
    write_parts(sums, gamma_parts, beta_parts, image, c, CHANNELS, TANGENT)
    w_parts += image * (9 * CIN * CHANNELS)
    inside = (row[:, None] < 9 * CIN) & (c < CHANNELS)
    tl.store(w_parts + row[:, None] * CHANNELS + c, result, mask=inside)


def first_layer_backward(
    gp: Tensor,
    a: Tensor,
    statistics: tuple[Tensor, Tensor],
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    norm_parts: tuple[Tensor, Tensor],
    precision: str,
    tangent: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Gradients of a block of at most :data:`contraction.FEW` input channels, or their tangents.

    Args:
        gp: cotangent of the block's output [S,B,H//2,W//2,C].
        a: [S,B,H,W,Cin], which has no tangent.
        statistics: of :func:`fastmtt.kernels.patches.patch_statistics`.
        w: [S,3,3,Cin,C], contiguous for each student.
        gamma: [S,C], likewise.
        beta: as gamma.
        xhat: the normalised convolution [S,B,H,W,C] of these a and w.
        rstd: its 1/std [S,B,C].
        norm_parts: two [S,B,C], as of :func:`fastmtt.kernels.norm_backward.norm_backward`.
        precision: of :mod:`fastmtt.kernels.precision`.
        tangent: (gp_dot, w_dot, rstd_dot, gamma_dot); None for the gradient alone.
        sums: where, with a tangent, S_gx and S_g go, [S,B,C] each.

    Returns:
        The images' parts [S,B,9*Cin*C] of the weights' gradient.
    """
    students, images, height, width, cin = a.shape
    channels = xhat.shape[-1]
    gp_dot, w_dot, rstd_dot, gamma_dot = tangent or (None, None, None, None)
    gx_sums, g_sums = sums or (None, None)
    parts = a.new_empty(students, images, 9 * cin * channels)

    def run(config: Config) -> None:
        tiles = triton.cdiv(channels, config.sizes["COLUMNS"])
        _first_layer_backward[(students * images * tiles,)](
            gp,
            gp_dot,
            xhat,
            rstd,
            rstd_dot,
            gamma,
            gamma_dot,
            beta,
            a,
            *statistics,
            w,
            w_dot,
            parts,
            *norm_parts,
            g_sums,
            gx_sums,
            gamma.stride(0),
            0 if gamma_dot is None else gamma_dot.stride(0),
            beta.stride(0),
            w.stride(0),
            0 if w_dot is None else w_dot.stride(0),
            images,
            HEIGHT=height,
            WIDTH=width,
            CIN=cin,
            CHANNELS=channels,
            TANGENT=tangent is not None,
            PRECISION=precision,
            ROWS=rows_of(cin),
            **config.launch,
        )

    key = (students * images, height, width, cin, channels, tangent is not None, precision)
    run(choose("first_layer_backward", key, configs(channels), run))
    return parts


def configs(channels: int) -> list[Config]:
    """Channels and pixels a program works on at once."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    for pixels, columns, warps in (
        (32, 64, 8),
        (16, 64, 8),
        (16, 128, 8),
        (32, 16, 4),
        (64, 64, 8),
    ):
        config = Config({"PIXELS": pixels, "COLUMNS": min(columns, most)}, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    dots = ("gp_dot", "rstd_dot", "gamma_dot", "w_dot", "g_sums", "gx_sums")
    sizes = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "CHANNELS": 128, "ROWS": rows_of(3)}
    names = _first_layer_backward.arg_names
    for tangent in (False, True):
        signature = {n: "i32" if n.endswith("stride") or n == "images" else "*fp32" for n in names}
        constants: dict[str, Any] = sizes | {"TANGENT": tangent, "PRECISION": "tf32"}
        if not tangent:
            constants |= dict.fromkeys(dots)
        for config in configs(128):
            name = f"first_layer_backward {'tangent' if tangent else 'primal'} tf32"
            yield name, _first_layer_backward, signature, constants, config
