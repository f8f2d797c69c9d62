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
from fastmtt.kernels.tuning import Config, choose
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
    """A program owns some pixels of an image: their mean, and their squares about it."""
    AREA: tl.constexpr = HEIGHT * WIDTH
    parts: tl.constexpr = (AREA + PIXELS - 1) // PIXELS
    place = tl.program_id(0).to(tl.int64)
    start = tl.program_id(0) % parts * PIXELS
    row = tl.arange(0, ROWS)
    pixel = start + tl.arange(0, PIXELS)
    y, x, present = pixel // WIDTH, pixel % WIDTH, pixel < AREA
    nothing = tl.zeros((ROWS,), tl.float32)
    a += place // parts * (AREA * CIN)
    patch = patches_at(a, y, x, present, nothing, HEIGHT, WIDTH, CIN, ROWS)
    centre = tl.sum(patch, 0) / tl.minimum(PIXELS, AREA - start)
    tl.store(mean + place * ROWS + row, centre)
    centred = tl.where(present[:, None], patch - centre[None, :], 0.0)
    squares = nearly_exact(tl.trans(centred), centred, PRECISION)
    tile = row[:, None] * ROWS + row[None, :]
    tl.store(covariance + place * (ROWS * ROWS) + tile, squares / AREA)


@triton.jit
def _merge(
    means,
    covariances,
    mean,
    covariance,
    AREA: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """An image's statistics from those of its parts."""
    parts: tl.constexpr = (AREA + PIXELS - 1) // PIXELS
    image = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)
    tile = row[:, None] * ROWS + row[None, :]
    means += image * (parts * ROWS)
    covariances += image * (parts * ROWS * ROWS)
    centre = tl.zeros((ROWS,), tl.float32)
    for part in range(parts):
        share = tl.minimum(PIXELS, AREA - part * PIXELS).to(tl.float32) / AREA
        centre += share * tl.load(means + part * ROWS + row)
    spread = tl.zeros((ROWS, ROWS), tl.float32)
    for part in range(parts):
        share = tl.minimum(PIXELS, AREA - part * PIXELS).to(tl.float32) / AREA
        off = tl.load(means + part * ROWS + row) - centre
        spread += tl.load(covariances + part * (ROWS * ROWS) + tile)
        spread += share * off[:, None] * off[None, :]
    tl.store(mean + image * ROWS + row, centre)
    tl.store(covariance + image * (ROWS * ROWS) + tile, spread)


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
    area, rows = height * width, rows_of(channels)
    sizes = {"HEIGHT": height, "WIDTH": width, "CIN": channels, "ROWS": rows}

    def run(config: Config) -> tuple[Tensor, Tensor]:
        pixels = config.sizes["PIXELS"]
        parts = triton.cdiv(area, pixels)
        count = students * images
        found = a.new_empty(count * parts, rows), a.new_empty(count * parts, rows, rows)
        _statistics[(count * parts,)](a, *found, PRECISION=precision, **sizes, **config.launch)
        if parts == 1:
            return found
        whole = a.new_empty(count, rows), a.new_empty(count, rows, rows)
        _merge[(count,)](*found, *whole, AREA=area, ROWS=rows, PIXELS=pixels)
        return whole

    key = (students * images, height, width, channels, precision)
    return run(choose("patch_statistics", key, configs(), run))


def configs() -> list[Config]:
    """Pixels of a program."""
    return [Config({"PIXELS": pixels}, warps, 1) for pixels, warps in ((128, 4), (64, 4), (128, 8))]


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    constants: dict[str, Any] = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "ROWS": rows_of(3)}
    constants["PRECISION"] = "tf32"
    signature = dict.fromkeys(("a", "mean", "covariance"), "*fp32")
    for config in configs():
        yield "patch statistics tf32", _statistics, signature, constants, config
        merged = {"AREA": 1024, "ROWS": rows_of(3), "PIXELS": config.sizes["PIXELS"]}
        yield (
            f"merged statistics {config.sizes['PIXELS']} {config.warps}",
            _merge,
            dict.fromkeys(("means", "covariances", "mean", "covariance"), "*fp32"),
            merged,
            Config(),
        )
