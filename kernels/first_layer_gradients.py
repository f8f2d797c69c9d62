"""A first layer's parameter gradients from products with patches, and the gradients' tangents.

The cotangent gz of the convolution's output is never there. Over a plane, with x = xhat, g the
cotangent behind the ReLU, S_v the sum of v and patches less their mean,

    gz = r gamma (g - (S_g + x S_gx) / AREA),    x = patch . (r w),

so all that the weights' gradient asks of a plane is G, the products of patches with g: the patches'
covariance C says the rest, ``r gamma (G - C (r w) S_gx)`` with ``S_gx = (r w) . G``. This is linear
in G. Programs may own any part of a plane, and their results add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl
from fastmtt.kernels.contraction import FEW
from fastmtt.kernels.norm_backward import image_of, read
from fastmtt.kernels.patches import nearly_exact, patches_and_one, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config
from torch import Tensor


@triton.jit(do_not_specialize=["images"])
def _gradients(
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
    gx_parts,
    g_parts,
    gx_dot_parts,
    g_dot_parts,
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
    TURNS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns TURNS times PIXELS pixels of an image, and COLUMNS channels."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    parts: tl.constexpr = (AREA + PIXELS * TURNS - 1) // (PIXELS * TURNS)
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    place = (tl.program_id(0) // tiles).to(tl.int64)
    image = place // parts
    student = image // images
    row = tl.arange(0, ROWS)
    c = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    tensors = (gp, gp_dot, xhat, xhat, rstd, rstd_dot, gamma, gamma_dot, beta)
    strides = (gamma_stride, gamma_dot_stride, beta_stride)
    planes, statistics = image_of(
        tensors, strides, image, student, c, HEIGHT, WIDTH, CHANNELS, TANGENT
    )
    scale, scale_dot, r, r_dot, shift = statistics
    centre = tl.load(mean + image * ROWS + row)
    a += image * (AREA * CIN)

    with_g = tl.zeros((ROWS, COLUMNS), tl.float32)
    with_g_dot = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = (place % parts).to(tl.int32) * (PIXELS * TURNS)
    for start in range(first, first + PIXELS * TURNS, PIXELS):
        _, _, g, g_dot = read(
            planes, scale, shift, start, c, HEIGHT, WIDTH, CHANNELS, PIXELS, TANGENT
        )
        pixel = start + tl.arange(0, PIXELS)
        patch = patches_and_one(a, pixel, centre, HEIGHT, WIDTH, CIN, ROWS)
        patch = tl.trans(rounded(patch, PRECISION))
        with_g = multiply(patch, rounded(g, PRECISION), with_g, PRECISION)
        if TANGENT:
            with_g_dot = multiply(patch, rounded(g_dot, PRECISION), with_g_dot, PRECISION)

    weights = weights_of(w + student * w_stride, row, c, CIN, CHANNELS)
    spread = tl.load(covariance + image * (ROWS * ROWS) + row[:, None] * ROWS + row[None, :])
    one = (row == 9 * CIN)[:, None]
    inner = r * weights
    sum_g = tl.sum(tl.where(one, with_g, 0.0), 0, keep_dims=True)
    sum_gx = tl.sum(inner * with_g, 0, keep_dims=True)
    with_x = nearly_exact(spread, inner, PRECISION)
    with_gz = with_g - with_x * sum_gx  # but for r gamma
    result = r * scale * with_gz
    exists = c < CHANNELS
    at = place * CHANNELS + c
    tl.store(g_parts + at, sum_g, mask=exists)
    tl.store(gx_parts + at, sum_gx, mask=exists)
    if TANGENT:
        weights_dot = weights_of(w_dot + student * w_dot_stride, row, c, CIN, CHANNELS)
        inner_dot = r * weights_dot + r_dot * weights  # x_dot is a patch times these
        sum_g_dot = tl.sum(tl.where(one, with_g_dot, 0.0), 0, keep_dims=True)
        sum_gx_dot = tl.sum(inner * with_g_dot + inner_dot * with_g, 0, keep_dims=True)
        with_gz_dot = with_g_dot - with_x * sum_gx_dot
        with_gz_dot -= nearly_exact(spread, inner_dot, PRECISION) * sum_gx
        result = (r_dot * scale + r * scale_dot) * with_gz + r * scale * with_gz_dot
        tl.store(g_dot_parts + at, sum_g_dot, mask=exists)
        tl.store(gx_dot_parts + at, sum_gx_dot, mask=exists)
    w_parts += place * (9 * CIN * CHANNELS)
    tl.store(w_parts + row[:, None] * CHANNELS + c, result, mask=(row < 9 * CIN)[:, None] & exists)


class Tangent(NamedTuple):
    """What moves: w as [S,3,3,Cin,C], rstd as [S,B,C], gamma as [S,C], the output's cotangent."""

    w: Tensor
    rstd: Tensor
    gamma: Tensor
    gp: Tensor


class Parts(NamedTuple):
    """What adds up to gradients: of n parts of images, or their tangents.

    Attributes:
        w: [S,n,9*Cin*C].
        norm: of gamma and beta, [S,n,C] each.
        of_norm: the same of gradients, where ``norm`` has their tangents; else ``norm``.
    """

    w: Tensor
    norm: tuple[Tensor, Tensor]
    of_norm: tuple[Tensor, Tensor]


def gradients(
    config: Config,
    gp: Tensor,
    a: Tensor,
    statistics: tuple[Tensor, Tensor],
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    precision: str,
    tangent: Tangent | None = None,
) -> Parts:
    """Gradients of a block of at most :data:`contraction.FEW` input channels, or their tangents.

    Args:
        config: one of :func:`plans`.
        gp: cotangent of the block's output [S,B,H//2,W//2,C].
        a: [S,B,H,W,Cin], which has no tangent.
        statistics: of :func:`fastmtt.kernels.patches.patch_statistics`.
        w: [S,3,3,Cin,C], contiguous for each student.
        gamma: [S,C], likewise.
        beta: as gamma.
        xhat: the normalised convolution [S,B,H,W,C] of these a and w.
        rstd: its 1/std [S,B,C].
        precision: of :mod:`fastmtt.kernels.precision`.
        tangent: None for the gradients alone.
    """
    students, images, height, width, cin = a.shape
    channels = xhat.shape[-1]
    parts = images * triton.cdiv(height * width, config.sizes["PIXELS"] * config.sizes["TURNS"])
    tiles = triton.cdiv(channels, config.sizes["COLUMNS"])
    w_parts = a.new_empty(students, parts, 9 * cin * channels)
    pairs = [
        (a.new_empty(students, parts, channels), a.new_empty(students, parts, channels))
        for _ in range(1 if tangent is None else 2)
    ]
    moving = tangent or Tangent(w, rstd, gamma, gp)
    _gradients[(students * parts * tiles,)](
        gp,
        moving.gp,
        xhat,
        rstd,
        moving.rstd,
        gamma,
        moving.gamma,
        beta,
        a,
        *statistics,
        w,
        moving.w,
        w_parts,
        *pairs[0],
        *pairs[-1],
        *(t.stride(0) for t in (gamma, moving.gamma, beta, w, moving.w)),
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
    return Parts(w_parts, pairs[-1], pairs[0])


def plans(a: Tensor, a_dot: Tensor | None, channels: int, precision: str) -> Sequence[Config]:
    """The configurations that can serve a backward or its tangent; see :mod:`.first_layer`."""
    few = a.shape[-1] <= FEW and a_dot is None
    return configs(channels) if few and precision == "tf32" else ()


def serves(config: Config) -> bool:
    """Whether a configuration is one of :func:`plans`."""
    return "TURNS" in config.sizes


def configs(channels: int) -> list[Config]:
    """Pixels and channels a program works on at once, and how often."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    shapes = ((64, 4, 64, 4), (64, 2, 64, 4), (64, 4, 128, 8), (32, 4, 64, 4), (64, 8, 32, 4))
    for pixels, turns, columns, warps in shapes:
        sizes = {"PIXELS": pixels, "TURNS": turns, "COLUMNS": min(columns, most)}
        config = Config(sizes, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    sizes = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "CHANNELS": 128, "ROWS": rows_of(3)}
    names = _gradients.arg_names
    signature = {n: "i32" if n.endswith("stride") or n == "images" else "*fp32" for n in names}
    for tangent in (False, True):
        constants: dict[str, Any] = sizes | {"TANGENT": tangent, "PRECISION": "tf32"}
        for config in configs(128):
            name = f"first_layer_gradients {'tangent' if tangent else 'primal'} tf32"
            yield name, _gradients, signature, constants, config
