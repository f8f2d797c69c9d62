"""Instance norm, ReLU and 2x2 average pool: of tiles in registers, and of planes in memory.

Statistics take two passes, the mean first and then the centred squares, or merge blocks that did.
"""

from __future__ import annotations

import triton
import triton.language as tl
from fastmtt.kernels.tuning import Config
from torch import Tensor

from fastmtt.ops.reference_block import EPS as _EPS

EPS: tl.constexpr = tl.constexpr(_EPS)


# --- tiles of whole planes -----------------------------------------------------------------------
#
# Their rows are ordered so that the four pixels of a pooling window differ in the highest bit of
# the row (the lower of two) and in bit 3 (the right of two), in between and below run the windows
# of all planes. In the layouts of tensor cores' results both bits select among one thread's own
# registers, so that pooling costs additions alone.


@triton.jit
def whole_planes(BLOCK_M: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Image, y and x of each row [BLOCK_M] of a tile of planes; all powers of two."""
    windows: tl.constexpr = HEIGHT * WIDTH // 4
    lanes: tl.constexpr = min(8, windows)
    row = tl.arange(0, BLOCK_M)
    window = row // (2 * lanes) % (BLOCK_M // 4 // lanes) * lanes + row % lanes
    within = window % windows
    y = within // (WIDTH // 2) * 2 + row // (BLOCK_M // 2)
    x = within % (WIDTH // 2) * 2 + row // lanes % 2
    return window // windows, y, x


@triton.jit
def pooled(n, WINDOWS: tl.constexpr):
    """[BLOCK_M,N] -> sums over windows [BLOCK_M // 4,N], in the order of the pooled planes."""
    lanes: tl.constexpr = min(8, WINDOWS)
    steps: tl.constexpr = n.shape[0] // 4 // lanes
    halves = tl.sum(tl.reshape(n, (2, steps * 2 * lanes * n.shape[1])), 0)
    quarters = tl.sum(tl.reshape(halves, (steps, 2, lanes, n.shape[1])), 1)
    return tl.reshape(quarters, (n.shape[0] // 4, n.shape[1]))


@triton.jit
def of_planes(z, WINDOWS: tl.constexpr):
    """[BLOCK_M,N] -> means over planes [planes,N]."""
    planes: tl.constexpr = z.shape[0] // 4 // WINDOWS
    sums = tl.reshape(pooled(z, WINDOWS), (planes, WINDOWS, z.shape[1]))
    return tl.sum(sums, 1) * (0.25 / WINDOWS)


@triton.jit
def to_pixels(statistic, BLOCK_M: tl.constexpr, WINDOWS: tl.constexpr):
    """[planes,N] -> the statistic of each row's plane, [BLOCK_M,N]."""
    lanes: tl.constexpr = min(8, WINDOWS)
    planes: tl.constexpr = BLOCK_M // 4 // WINDOWS
    channels: tl.constexpr = statistic.shape[1]
    wide = tl.reshape(statistic, (1, planes, 1, 1, 1, channels))
    shape: tl.constexpr = (2, planes, WINDOWS // lanes, 2, lanes, channels)
    return tl.reshape(tl.broadcast_to(wide, shape), (BLOCK_M, channels))


@triton.jit
def normalised(z, WINDOWS: tl.constexpr):
    """[BLOCK_M,N] -> normalised, and 1/std [planes,N]."""
    centred = z - to_pixels(of_planes(z, WINDOWS), z.shape[0], WINDOWS)
    rstd = 1.0 / tl.sqrt(of_planes(centred * centred, WINDOWS) + EPS)
    return centred * to_pixels(rstd, z.shape[0], WINDOWS), rstd


# --- planes in memory ----------------------------------------------------------------------------


@triton.jit
def _statistics(z, columns, wanted, PIXELS: tl.constexpr, C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Mean and 1/std [N] of one plane of z, whose blocks are merged as in Chan, Golub, LeVeque."""
    mean = tl.zeros_like(columns).to(tl.float32)
    squares = tl.zeros_like(mean)
    for first in range(0, PIXELS, BLOCK_P):
        pixels = first + tl.arange(0, BLOCK_P)
        mask = (pixels < PIXELS)[:, None] & wanted[None, :]
        block = tl.load(z + pixels[:, None] * C + columns[None, :], mask=mask, other=0.0)
        count = tl.minimum(BLOCK_P, PIXELS - first).to(tl.float32)
        block_mean = tl.sum(block, 0) / count
        centred = tl.where(mask, block - block_mean[None, :], 0.0)
        step = block_mean - mean
        share = count / (first + count)
        mean += step * share
        squares += tl.sum(centred * centred, 0) + step * step * (first * share)
    return mean, 1.0 / tl.sqrt(squares / PIXELS + EPS)


@triton.jit
def _window(
    first, CORNER: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr
):
    """One corner of each of BLOCK_P windows, those cut by an odd edge too: offset, presence."""
    across: tl.constexpr = (WIDTH + 1) // 2
    window = first + tl.arange(0, BLOCK_P)
    y = window // across * 2 + CORNER // 2
    x = window % across * 2 + CORNER % 2
    return y * WIDTH + x, (y < HEIGHT) & (x < WIDTH)


@triton.jit
def _pooled_place(first, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offset of each window's mean, and whether it has one."""
    across: tl.constexpr = (WIDTH + 1) // 2
    window = first + tl.arange(0, BLOCK_P)
    y = window // across
    x = window % across
    return y * (WIDTH // 2) + x, (y < HEIGHT // 2) & (x < WIDTH // 2)


@triton.jit(do_not_specialize=["images"])
def _forward(
    xhat,
    gamma,
    beta,
    p,
    rstd,
    images,
    gamma_stride,
    beta_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """A program owns BLOCK_C channels of one image; xhat holds z and is normalised in place."""
    tiles: tl.constexpr = tl.cdiv(C, BLOCK_C)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    student = image // images
    columns = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = columns < C
    xhat += image * (HEIGHT * WIDTH * C)
    p += image * ((HEIGHT // 2) * (WIDTH // 2) * C)
    mean, scale = _statistics(xhat, columns, wanted, HEIGHT * WIDTH, C, BLOCK_P)
    tl.store(rstd + image * C + columns, scale, mask=wanted)
    g = tl.load(gamma + student * gamma_stride + columns, mask=wanted)
    b = tl.load(beta + student * beta_stride + columns, mask=wanted)
    for first in range(0, ((HEIGHT + 1) // 2) * ((WIDTH + 1) // 2), BLOCK_P):
        total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for corner in tl.static_range(4):
            pixels, present = _window(first, corner, HEIGHT, WIDTH, BLOCK_P)
            place = xhat + pixels[:, None] * C + columns[None, :]
            mask = present[:, None] & wanted[None, :]
            z = (tl.load(place, mask=mask) - mean[None, :]) * scale[None, :]
            tl.store(place, z, mask=mask)
            total += tl.maximum(z * g[None, :] + b[None, :], 0.0)
        windows, present = _pooled_place(first, HEIGHT, WIDTH, BLOCK_P)
        place = p + windows[:, None] * C + columns[None, :]
        tl.store(place, total * 0.25, mask=present[:, None] & wanted[None, :])


@triton.jit(do_not_specialize=["images"])
def _jvp(
    xhat,
    rstd,
    xhat_dot,
    rstd_dot,
    gamma,
    gamma_dot,
    beta,
    beta_dot,
    p,
    p_dot,
    images,
    gamma_stride,
    gamma_dot_stride,
    beta_stride,
    beta_dot_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """xhat_dot holds z_dot, and xhat holds z unless it is GIVEN; both are replaced in place."""
    tiles: tl.constexpr = tl.cdiv(C, BLOCK_C)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    student = image // images
    columns = tl.program_id(0) % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    wanted = columns < C
    area: tl.constexpr = HEIGHT * WIDTH
    xhat += image * (area * C)
    xhat_dot += image * (area * C)
    p += image * ((HEIGHT // 2) * (WIDTH // 2) * C)
    p_dot += image * ((HEIGHT // 2) * (WIDTH // 2) * C)
    if GIVEN:  # its mean is zero and its scale is one
        mean = tl.zeros((BLOCK_C,), tl.float32)
        inner = mean + 1.0
        scale = tl.load(rstd + image * C + columns, mask=wanted)
    else:
        mean, scale = _statistics(xhat, columns, wanted, area, C, BLOCK_P)
        inner = scale
        tl.store(rstd + image * C + columns, scale, mask=wanted)
    mean_dot = tl.zeros((BLOCK_C,), tl.float32)
    correlation = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, area, BLOCK_P):
        pixels = first + tl.arange(0, BLOCK_P)
        mask = (pixels < area)[:, None] & wanted[None, :]
        place = pixels[:, None] * C + columns[None, :]
        z_dot = tl.load(xhat_dot + place, mask=mask, other=0.0)
        z = (tl.load(xhat + place, mask=mask, other=0.0) - mean[None, :]) * inner[None, :]
        mean_dot += tl.sum(z_dot, 0)
        correlation += tl.sum(z * z_dot, 0)
    mean_dot /= area
    correlation /= area
    tl.store(rstd_dot + image * C + columns, -scale * scale * correlation, mask=wanted)
    g = tl.load(gamma + student * gamma_stride + columns, mask=wanted)
    g_dot = tl.load(gamma_dot + student * gamma_dot_stride + columns, mask=wanted)
    b = tl.load(beta + student * beta_stride + columns, mask=wanted)
    b_dot = tl.load(beta_dot + student * beta_dot_stride + columns, mask=wanted)
    for first in range(0, ((HEIGHT + 1) // 2) * ((WIDTH + 1) // 2), BLOCK_P):
        total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        total_dot = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for corner in tl.static_range(4):
            pixels, present = _window(first, corner, HEIGHT, WIDTH, BLOCK_P)
            place = pixels[:, None] * C + columns[None, :]
            mask = present[:, None] & wanted[None, :]
            z = (tl.load(xhat + place, mask=mask) - mean[None, :]) * inner[None, :]
            z_dot = tl.load(xhat_dot + place, mask=mask)
            z_dot = scale[None, :] * (z_dot - mean_dot[None, :] - z * correlation[None, :])
            if not GIVEN:
                tl.store(xhat + place, z, mask=mask)
            tl.store(xhat_dot + place, z_dot, mask=mask)
            n = z * g[None, :] + b[None, :]
            n_dot = z * g_dot[None, :] + b_dot[None, :] + z_dot * g[None, :]
            total += tl.maximum(n, 0.0)
            total_dot += tl.where(n > 0.0, n_dot, 0.0)
        windows, present = _pooled_place(first, HEIGHT, WIDTH, BLOCK_P)
        place = windows[:, None] * C + columns[None, :]
        mask = present[:, None] & wanted[None, :]
        tl.store(p + place, total * 0.25, mask=mask)
        tl.store(p_dot + place, total_dot * 0.25, mask=mask)


_CONFIG = Config({"BLOCK_C": 32, "BLOCK_P": 32}, warps=4, stages=1)  # bound by memory, not by tiles


def _programs(z: Tensor) -> int:
    students, images, _, _, channels = z.shape
    return students * images * triton.cdiv(channels, _CONFIG.sizes["BLOCK_C"])


def _sizes(z: Tensor) -> dict[str, int]:
    return {"HEIGHT": z.shape[2], "WIDTH": z.shape[3], "C": z.shape[4]}


def forward(xhat: Tensor, gamma: Tensor, beta: Tensor, p: Tensor, rstd: Tensor) -> None:
    """Normalise a convolution in place, with its 1/std and the pooled ReLU of the affine map.

    Args:
        xhat: the convolution [S,B,H,W,C], replaced by the normalised one.
        gamma: [S,C], contiguous for each student. So is beta.
        beta: see gamma.
        p: where the block's output [S,B,H//2,W//2,C] goes.
        rstd: where 1/std [S,B,C] goes.
    """
    _forward[(_programs(xhat),)](
        xhat,
        gamma,
        beta,
        p,
        rstd,
        xhat.shape[1],
        gamma.stride(0),
        beta.stride(0),
        **_sizes(xhat),
        **_CONFIG.launch,
    )


def jvp(
    xhat: Tensor,
    rstd: Tensor,
    xhat_dot: Tensor,
    rstd_dot: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor, Tensor],
    p: Tensor,
    p_dot: Tensor,
    *,
    given: bool,
) -> None:
    """Tangents of the norm, ReLU and pool, and the primal too.

    Args:
        xhat: the normalised convolution [S,B,H,W,C] if given, else the convolution, replaced.
        rstd: 1/std [S,B,C], written unless given.
        xhat_dot: the convolution's tangent, replaced by that of the normalised one.
        rstd_dot: where the tangent of rstd goes.
        parameters: gamma, gamma_dot, beta, beta_dot, each [S,C], contiguous for each student.
        p: where the block's output [S,B,H//2,W//2,C] goes.
        p_dot: where its tangent goes.
        given: whether the statistics were.
    """
    _jvp[(_programs(xhat),)](
        xhat,
        rstd,
        xhat_dot,
        rstd_dot,
        *parameters,
        p,
        p_dot,
        xhat.shape[1],
        *(t.stride(0) for t in parameters),
        GIVEN=given,
        **_sizes(xhat),
        **_CONFIG.launch,
    )
