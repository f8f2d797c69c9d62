"""The 3x3 patches of images of few channels, and what a convolution's statistics are in them.

A pixel's patch is a row of 9*Cin numbers, (tap, channel), and a convolution multiplies it with the
weights. So the mean of an output channel over a plane is the mean patch times its weights, and the
covariance of two of them is ``w' C v`` with the patches' own covariance C: of a network's first
layer a small matrix an image says what instance norm asks of whole planes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.tuning import Config
from torch import Tensor


@triton.jit
def patches_at(
    a,
    y,
    x,
    present,
    mean,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Patches [pixels, ROWS] of an image's pixels, less ``mean`` [ROWS]; zero beyond 9*CIN rows."""
    row = tl.arange(0, ROWS)[None, :]
    down, across = y[:, None] + row // (3 * CIN) - 1, x[:, None] + row // CIN % 3 - 1
    exists = present[:, None] & (row < 9 * CIN)
    inside = exists & (down >= 0) & (down < HEIGHT) & (across >= 0) & (across < WIDTH)
    found = tl.load(a + (down * WIDTH + across) * CIN + row % CIN, mask=inside, other=0.0)
    return tl.where(exists, found - mean[None, :], 0.0)


@triton.jit
def weights_of(w, row, c, CIN: tl.constexpr, CHANNELS: tl.constexpr):
    """A student's weights, or a tangent of them: rows [ROWS], channels c [1,COLUMNS]."""
    exists = (row < 9 * CIN)[:, None] & (c < CHANNELS)
    return tl.load(w + row[:, None] * CHANNELS + c, mask=exists, other=0.0)


@triton.jit
def nearly_exact(x, y, PRECISION: tl.constexpr):
    """The matrix product of two float32 tensors to float32's precision, by the means allowed."""
    by: tl.constexpr = "ieee" if PRECISION == "ieee" else "tf32x3"
    return tl.dot(x, y, input_precision=by)


@triton.jit
def _statistics(
    a,
    mean,
    covariance,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program owns an image. The mean comes first: squares of what is far from it cancel."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    image = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)
    a += image * (AREA * CIN)
    nothing = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, AREA, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        y, x, present = pixel // WIDTH, pixel % WIDTH, pixel < AREA
        total += tl.sum(patches_at(a, y, x, present, nothing, HEIGHT, WIDTH, CIN, ROWS), 0)
    centre = total / AREA
    tl.store(mean + image * ROWS + row, centre)
    squares = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(0, AREA, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        y, x, present = pixel // WIDTH, pixel % WIDTH, pixel < AREA
        centred = patches_at(a, y, x, present, centre, HEIGHT, WIDTH, CIN, ROWS)
        squares += nearly_exact(tl.trans(centred), centred, PRECISION)
    place = row[:, None] * ROWS + row[None, :]
    tl.store(covariance + image * (ROWS * ROWS) + place, squares / AREA)


_CONFIG = Config({"PIXELS": 128}, warps=4, stages=1)


def rows_of(channels: int) -> int:
    """Rows of a tile that holds a patch of so many channels."""
    return max(16, triton.next_power_of_2(9 * channels))


def patch_statistics(a: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """Mean and covariance of each image's patches.

    Args:
        a: float32 [S,B,H,W,Cin], contiguous, of at most :data:`FEW` channels.
        precision: of :mod:`fastmtt.kernels.precision`; sums are float32's in any.

    Returns:
        [S*B,R] and [S*B,R,R], zero from 9*Cin on, for R of :func:`rows_of`.
    """
    students, images, height, width, channels = a.shape
    rows = rows_of(channels)
    mean = a.new_empty(students * images, rows)
    covariance = a.new_empty(students * images, rows, rows)
    sizes = {"HEIGHT": height, "WIDTH": width, "CIN": channels, "ROWS": rows}
    _statistics[(students * images,)](
        a, mean, covariance, PRECISION=precision, **sizes, **_CONFIG.launch
    )
    return mean, covariance


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    constants: dict[str, Any] = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "ROWS": rows_of(3)}
    constants["PRECISION"] = "tf32"
    signature = dict.fromkeys(("a", "mean", "covariance"), "*fp32")
    yield "patch statistics tf32", _statistics, signature, constants, _CONFIG
