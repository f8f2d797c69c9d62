"""A first layer's parameter gradients from products with patches, and the gradients' tangents.

The cotangent gz of the convolution's output is never there. Over a plane, with x = xhat, g the
cotangent behind the ReLU, S_v the sum of v and patches less their mean,

    gz = r gamma (g - (S_g + x S_gx) / AREA),    x = patch . (r w),

so all that the weights' gradient asks of a plane is G, the products of patches with g: the patches'
covariance C says the rest, ``r gamma (G - C (r w) S_gx)`` with ``S_gx = (r w) . G``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from fastmtt.kernels.contraction import FEW
from fastmtt.kernels.norm_backward import read
from fastmtt.kernels.patches import patches_and_one, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config
from torch import Tensor


@triton.jit(do_not_specialize=["images"])
def _products(
    gp,
    gp_dot,
    xhat,
    gamma,
    beta,
    a,
    mean,
    products,
    products_dot,
    gamma_stride,
    beta_stride,
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
    """Of TURNS times PIXELS pixels of an image and COLUMNS channels."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    parts: tl.constexpr = (AREA + PIXELS * TURNS - 1) // (PIXELS * TURNS)
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    place = (tl.program_id(0) // tiles).to(tl.int64)
    image = place // parts
    student = image // images
    row = tl.arange(0, ROWS)
    c = (tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    exists = c < CHANNELS
    scale = tl.load(gamma + student * gamma_stride + c, mask=exists, other=0.0)
    shift = tl.load(beta + student * beta_stride + c, mask=exists, other=0.0)
    centre = tl.load(mean + image * ROWS + row)
    pooled_plane = image * ((HEIGHT // 2) * (WIDTH // 2) * CHANNELS)
    xhat += image * (AREA * CHANNELS)
    planes = (gp + pooled_plane, gp_dot + pooled_plane, xhat, xhat)
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
    at = place * (ROWS * CHANNELS) + row[:, None] * CHANNELS + c
    tl.store(products + at, with_g, mask=exists)
    if TANGENT:
        tl.store(products_dot + at, with_g_dot, mask=exists)


@triton.jit
def _total(parts, count, at, exists, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    total = tl.load(parts + at, mask=exists, other=0.0)
    for part in range(1, count):
        total += tl.load(parts + part * (ROWS * CHANNELS) + at, mask=exists, other=0.0)
    return total


@triton.jit(do_not_specialize=["images", "count"])
def _gradients(
    products,
    products_dot,
    rstd,
    rstd_dot,
    gamma,
    gamma_dot,
    w,
    w_dot,
    covariance,
    w_parts,
    gamma_parts,
    beta_parts,
    gx_sums,
    g_sums,
    gamma_stride,
    gamma_dot_stride,
    w_stride,
    w_dot_stride,
    images,
    count,
    AREA: tl.constexpr,
    CIN: tl.constexpr,
    CHANNELS: tl.constexpr,
    TANGENT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """An image's part, from the products of ``count`` parts of it."""
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    student = image // images
    row = tl.arange(0, ROWS)[:, None]
    c = (tile * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    exists = c < CHANNELS
    at = row * CHANNELS + c
    own = image * count * (ROWS * CHANNELS)
    with_g = _total(products + own, count, at, exists, CHANNELS, ROWS)
    scale = tl.load(gamma + student * gamma_stride + c, mask=exists, other=0.0)
    r = tl.load(rstd + image * CHANNELS + c, mask=exists, other=0.0)
    weights = weights_of(w + student * w_stride, tl.arange(0, ROWS), c, CIN, CHANNELS)
    column = tl.arange(0, ROWS)[None, :]
    spread = tl.load(covariance + image * (ROWS * ROWS) + row * ROWS + column)

    one = row == 9 * CIN
    gain = r * scale
    inner = r * weights
    sum_g = tl.sum(tl.where(one, with_g, 0.0), 0, keep_dims=True)
    sum_gx = tl.sum(inner * with_g, 0, keep_dims=True)
    spread, nothing = rounded(spread, PRECISION), tl.zeros((ROWS, COLUMNS), tl.float32)
    with_x = multiply(spread, rounded(inner, PRECISION), nothing, PRECISION)
    with_gz = with_g - with_x * sum_gx  # but for the gain
    result, of_beta, of_gamma = gain * with_gz, sum_g, sum_gx
    if TANGENT:
        with_g_dot = _total(products_dot + own, count, at, exists, CHANNELS, ROWS)
        scale_dot = tl.load(gamma_dot + student * gamma_dot_stride + c, mask=exists, other=0.0)
        r_dot = tl.load(rstd_dot + image * CHANNELS + c, mask=exists, other=0.0)
        weights_dot = weights_of(
            w_dot + student * w_dot_stride, tl.arange(0, ROWS), c, CIN, CHANNELS
        )
        gain_dot = r_dot * scale + r * scale_dot
        inner_dot = r * weights_dot + r_dot * weights  # x_dot is a patch times these
        of_beta = tl.sum(tl.where(one, with_g_dot, 0.0), 0, keep_dims=True)
        of_gamma = tl.sum(inner * with_g_dot + inner_dot * with_g, 0, keep_dims=True)
        with_gz_dot = with_g_dot - with_x * of_gamma
        with_x_dot = multiply(spread, rounded(inner_dot, PRECISION), nothing, PRECISION)
        with_gz_dot -= with_x_dot * sum_gx
        result = gain_dot * with_gz + gain * with_gz_dot
        tl.store(g_sums + image * CHANNELS + c, sum_g, mask=exists)
        tl.store(gx_sums + image * CHANNELS + c, sum_gx, mask=exists)
    tl.store(beta_parts + image * CHANNELS + c, of_beta, mask=exists)
    tl.store(gamma_parts + image * CHANNELS + c, of_gamma, mask=exists)
    w_parts += image * (9 * CIN * CHANNELS)
    tl.store(w_parts + at, result, mask=(row < 9 * CIN) & exists)


class Tangent(NamedTuple):
    """What moves: w as [S,3,3,Cin,C], rstd as [S,B,C], gamma as [S,C], the output's cotangent."""

    w: Tensor
    rstd: Tensor
    gamma: Tensor
    gp: Tensor


class Gradients(NamedTuple):
    """Images' parts of the gradients, or of the gradients' tangents.

    Attributes:
        w: [S,B,9*Cin*C].
        norm: of gamma and beta, [S,B,C] each.
        of_norm: the parts themselves, where ``norm`` has their tangents; else ``norm``.
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
) -> Gradients:
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
    channels, rows, area = xhat.shape[-1], rows_of(cin), height * width
    count = triton.cdiv(area, config.sizes["PIXELS"] * config.sizes["TURNS"])
    tiles = triton.cdiv(channels, config.sizes["COLUMNS"])
    moving = tangent or Tangent(w, rstd, gamma, gp)
    common: dict[str, Any] = {
        "CIN": cin,
        "CHANNELS": channels,
        "TANGENT": tangent is not None,
        "PRECISION": precision,
        "ROWS": rows,
    }
    products = a.new_empty(2 if tangent else 1, students * images, count, rows, channels)
    _products[(students * images * count * tiles,)](
        gp,
        moving.gp,
        xhat,
        gamma,
        beta,
        a,
        statistics[0],
        products[0],
        products[-1],
        gamma.stride(0),
        beta.stride(0),
        images,
        HEIGHT=height,
        WIDTH=width,
        **common,
        **config.launch,
    )
    columns = _columns(channels)
    tiles = triton.cdiv(channels, columns)
    w_parts = a.new_empty(students, images, 9 * cin * channels)
    norm = torch.empty_like(rstd), torch.empty_like(rstd)
    of_norm = norm if tangent is None else (torch.empty_like(rstd), torch.empty_like(rstd))
    _gradients[(students * images * tiles,)](
        products[0],
        products[-1],
        rstd,
        moving.rstd,
        gamma,
        moving.gamma,
        w,
        moving.w,
        statistics[1],
        w_parts,
        *norm,
        *of_norm,
        *(t.stride(0) for t in (gamma, moving.gamma, w, moving.w)),
        images,
        count,
        AREA=area,
        COLUMNS=columns,
        **common,
        **_ONCE.launch,
    )
    return Gradients(w_parts, norm, of_norm)


_ONCE = Config(stages=1)


def _columns(channels: int) -> int:
    """Channels of a program that makes gradients from products."""
    return min(32, max(16, triton.next_power_of_2(channels)))


def plans(a: Tensor, a_dot: Tensor | None, channels: int, precision: str) -> Sequence[Config]:
    """The configurations that can serve a backward or its tangent; none if the images move.

    As in :mod:`fastmtt.kernels.first_layer` none does in float32.
    """
    few = a.shape[-1] <= FEW and a_dot is None
    return configs(channels) if few and precision == "tf32" else ()


def serves(config: Config) -> bool:
    """Whether a configuration is one of :func:`plans`."""
    return "TURNS" in config.sizes


def configs(channels: int) -> list[Config]:
    """Pixels and channels a program works on at once, and how often."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    shapes = ((32, 8, 64, 4), (32, 2, 64, 4), (32, 8, 128, 8), (64, 4, 64, 8), (32, 8, 32, 4))
    for pixels, turns, columns, warps in shapes:
        sizes = {"PIXELS": pixels, "TURNS": turns, "COLUMNS": min(columns, most)}
        config = Config(sizes, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""

    def signature(kernel: Any) -> dict[str, str]:
        integers = ("images", "count")
        return {
            name: "i32" if name.endswith("stride") or name in integers else "*fp32"
            for name in kernel.arg_names
        }

    sizes: dict[str, Any] = {"CIN": 3, "CHANNELS": 128, "ROWS": rows_of(3), "PRECISION": "tf32"}
    for tangent in (False, True):
        constants = sizes | {"TANGENT": tangent, "HEIGHT": 32, "WIDTH": 32}
        kind = "tangent" if tangent else "primal"
        for config in configs(128):
            yield f"products {kind} tf32", _products, signature(_products), constants, config
        constants = sizes | {"TANGENT": tangent, "AREA": 1024, "COLUMNS": _columns(128)}
        yield f"gradients {kind} tf32", _gradients, signature(_gradients), constants, _ONCE
