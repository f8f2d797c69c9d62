"""DSA's maps of images and their transposes; the kind of map is read on the GPU.

See :mod:`fastmtt.ops.reference_dsa` for kinds and values. One program computes a tile of pixels of
one image, all channels at once, from that image alone: nothing depends on company. A kind that is
not known, which no host can see here, makes a student's images NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from fastmtt.kernels.dsa_sampling import gathered, sampled
from fastmtt.kernels.flat import Into, expect, place, types
from fastmtt.kernels.tuning import Config
from torch import Tensor

from fastmtt.ops.reference_dsa import KINDS

_COLOR, _CROP, _CUTOUT, _FLIP, _SCALE, _ROTATE = (
    tl.constexpr(KINDS.index(name))
    for name in ("color", "crop", "cutout", "flip", "scale", "rotate")
)


def dsa(x: Tensor, kind: Tensor, values: Tensor, cutout: float, *, into: Into = None) -> Tensor:
    """Augment x [S,B,C,H,W], of any strides, by kind int64 [S] and values [S,B,3]."""
    return _map("dsa", x, kind, values, cutout, into, transposed=False)


def dsa_transpose(
    g: Tensor, kind: Tensor, values: Tensor, cutout: float, *, into: Into = None
) -> Tensor:
    """Pull a cotangent of the augmented images back to the images."""
    return _map("dsa_transpose", g, kind, values, cutout, into, transposed=True)


def _map(
    op: str,
    x: Tensor,
    kind: Tensor,
    values: Tensor,
    cutout: float,
    into: Into,
    transposed: bool,
) -> Tensor:
    if x.dim() != 5:
        raise RuntimeError(f"{op}: images must be [S,B,C,H,W], got {list(x.shape)}")
    students, batch, channels, height, width = x.shape
    expect(op, {"values": (values, (students, batch, 3))}, x)
    if kind.dtype != torch.int64 or kind.shape != (students,):
        raise RuntimeError(
            f"{op}: kind must be int64 of shape [{students}], got {kind.dtype} of shape "
            f"{list(kind.shape)}"
        )
    result = place(op, into, 0, x.shape, x)
    if x.numel() > 0:
        config = _config(channels, height * width)
        tiles = triton.cdiv(height * width, config.sizes["PIXELS"])
        _mapped[(students * batch * tiles,)](
            x,
            kind.contiguous(),
            values.contiguous(),
            result,
            batch,
            channels,
            height,
            width,
            int(height * cutout + 0.5),
            int(width * cutout + 0.5),
            tiles,
            *x.stride(),
            result.stride(0),
            TRANSPOSED=transposed,
            **config.launch,
        )
    return result


def _config(channels: int, pixels: int) -> Config:
    lanes = triton.next_power_of_2(channels)
    most = max(1, min(256, 1024 // lanes))
    return Config({"CHANNELS": lanes, "PIXELS": min(most, triton.next_power_of_2(pixels))})


# Specialised on strides or alignment, a mean would be added up by how the images lie in memory.
@triton.jit(
    do_not_specialize=[
        "x_student",
        "x_image",
        "x_channel",
        "x_row",
        "x_column",
        "result_student",
    ],
    do_not_specialize_on_alignment=["x"],
)
def _mapped(
    x,
    kind,
    values,
    result,
    batch,
    channels,
    height,
    width,
    hole_height,
    hole_width,
    tiles,
    x_student,
    x_image,
    x_channel,
    x_row,
    x_column,
    result_student,
    TRANSPOSED: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    number = tl.program_id(0) // tiles
    student, image = (number // batch).to(tl.int64), (number % batch).to(tl.int64)
    what = tl.load(kind + student)
    first = values + (student * batch + image) * 3
    v0, v1, v2 = tl.load(first), tl.load(first + 1), tl.load(first + 2)
    channel = tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    row, column = pixel // width, pixel % width
    plane = x + student * x_student + image * x_image + channel * x_channel
    present = channel < channels

    if what == _COLOR:
        brightness = 0.0 if TRANSPOSED else v0
        mean = _mean(plane, present, channels, height, width, x_row, x_column, CHANNELS, PIXELS)
        mean += brightness
        seen = _look(plane, present, row, column, inside, x_row, x_column)
        grey = (tl.sum(seen, 0) / channels + brightness)[None, :]
        saturated = (seen + brightness - grey) * v1 + grey
        found = (saturated - mean) * v2 + mean
    elif (what == _SCALE) | (what == _ROTATE):
        xx, xy, yx, yy = v0, 0.0, 0.0, v1
        if what == _ROTATE:
            xx, xy, yx, yy = tl.cos(v0), -tl.sin(v0), tl.sin(v0), tl.cos(v0)
        if TRANSPOSED:
            found = gathered(
                plane, present, row, column, height, width, x_row, x_column, xx, xy, yx, yy
            )
        else:
            found = sampled(
                plane, present, row, column, height, width, x_row, x_column, xx, xy, yx, yy
            )
    else:
        down, right = _whole(v0, height), _whole(v1, width)
        source, there, shown = column, row, inside
        if what == _CROP:
            there = row - down if TRANSPOSED else row + down
            source = column - right if TRANSPOSED else column + right
        elif what == _CUTOUT:
            below, beside = row - down + hole_height // 2, column - right + hole_width // 2
            in_rows = (below >= 0) & (below < hole_height)
            shown = inside & ~(in_rows & (beside >= 0) & (beside < hole_width))
        elif (what == _FLIP) & (v0 > 0.5):
            source = width - 1 - column
        shown &= (there >= 0) & (there < height) & (source >= 0) & (source < width)
        found = _look(plane, present, there, source, shown, x_row, x_column)
        if (what < 0) | (what > _ROTATE):
            found = tl.full([CHANNELS, PIXELS], float("nan"), tl.float32)

    place_of = result + student * result_student + image * channels * height * width
    at = place_of + channel[:, None] * height * width + pixel[None, :]
    tl.store(at, found, present[:, None] & inside[None, :])


@triton.jit
def _look(plane, present, row, column, wanted, x_row, x_column):
    """Every channel [C,P] of the pixels wanted, zero of others."""
    at = plane[:, None] + (row * x_row + column * x_column)[None, :]
    return tl.load(at, present[:, None] & wanted[None, :], other=0.0)


@triton.jit
def _mean(
    plane,
    present,
    channels,
    height,
    width,
    x_row,
    x_column,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """The image's mean over pixels and channels."""
    lanes = tl.zeros([CHANNELS, PIXELS], tl.float32)
    for first in range(0, height * width, PIXELS):
        pixel = first + tl.arange(0, PIXELS)
        wanted = pixel < height * width
        lanes += _look(plane, present, pixel // width, pixel % width, wanted, x_row, x_column)
    return tl.sum(tl.sum(lanes, 1)) / (channels * height * width)


@triton.jit
def _whole(value, size):
    """A whole number of pixels; what is out of bounds or NaN shifts all out of the image."""
    return tl.minimum(tl.maximum(value, -2.0 * size), 2.0 * size).to(tl.int32)


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """The kernel at sizes in use: (name, kernel, types, constants, configuration)."""
    strides = "x_student x_image x_channel x_row x_column result_student"
    sizes = "batch channels height width hole_height hole_width tiles"
    signature = types("x values result", f"{sizes} {strides}") | {"kind": "*i64"}
    for channels in (1, 3):
        for transposed in (False, True):
            name = f"{'dsa_transpose' if transposed else 'dsa'}/{channels}"
            config = _config(channels, 32 * 32)
            yield name, _mapped, signature, {"TRANSPOSED": transposed}, config
