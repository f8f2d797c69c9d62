"""Bilinear sampling of an image along an affine map of the pixel grid, and its transpose.

Corners lie on corners (align_corners=True) and all outside is zero. Positions are counted from the
image's centre, where the map is linear: an output pixel at (u, v) looks at M (u, v), M from the
map in coordinates from -1 to 1 by the image's sides. The transpose gathers, in a fixed order: an
input pixel receives from the output pixels that look less than one pixel beside it, hence from
within the parallelogram that M's inverse makes of a square of side two. Its bounding box is
searched: 3 x 3 pixels for the draws of DSA (more for rotated oblong images), the whole image for a
map that is as good as singular. No map is refused.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sampled(plane, present, row, column, height, width, x_row, x_column, xx, xy, yx, yy):
    """Output pixels [C,P] at rows and columns [P] of the planes [C] of an image.

    Args:
        plane: pointers to each channel's plane [C].
        present: which of the channels there are [C].
        row: of the output pixels [P].
        column: of the output pixels [P].
        height: of the image.
        width: of the image.
        x_row: stride from row to row.
        x_column: stride from pixel to pixel.
        xx: with xy, yx and yy the map, x' = xx x + xy y, y' = yx x + yy y.
        xy: see xx.
        yx: see xx.
        yy: see xx.
    """
    across, down = _side_ratios(height, width)
    u, v = column - (width - 1) / 2, row - (height - 1) / 2
    there = _clamped(xx * u + xy * across * v + (width - 1) / 2, width)
    below = _clamped(yx * down * u + yy * v + (height - 1) / 2, height)
    left, top = tl.floor(there), tl.floor(below)
    right_share, lower_share = there - left, below - top
    left, top = left.to(tl.int32), top.to(tl.int32)
    upper = _pixels(plane, present, top, left, height, width, x_row, x_column)
    beside = _pixels(plane, present, top, left + 1, height, width, x_row, x_column)
    upper += right_share[None, :] * (beside - upper)
    lower = _pixels(plane, present, top + 1, left, height, width, x_row, x_column)
    beside = _pixels(plane, present, top + 1, left + 1, height, width, x_row, x_column)
    lower += right_share[None, :] * (beside - lower)
    return upper + lower_share[None, :] * (lower - upper)


@triton.jit
def gathered(plane, present, row, column, height, width, x_row, x_column, xx, xy, yx, yy):
    """What input pixels [C,P] receive from cotangents of the output; arguments as above."""
    across, down = _side_ratios(height, width)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    determinant = xx * yy - xy * across * yx * down
    # M's inverse
    uu, uv = yy / determinant, -xy * across / determinant
    vu, vv = -yx * down / determinant, xx / determinant
    x, y = column - centre_x, row - centre_y
    first_u, count_u = _searched(uu * x + uv * y + centre_x, tl.abs(uu) + tl.abs(uv), width)
    first_v, count_v = _searched(vu * x + vv * y + centre_y, tl.abs(vu) + tl.abs(vv), height)
    found = tl.zeros([present.shape[0], row.shape[0]], tl.float32)
    for j in range(count_v):
        for i in range(count_u):
            out_column, out_row = first_u + i, first_v + j
            u, v = out_column - centre_x, out_row - centre_y
            there = _clamped(xx * u + xy * across * v + centre_x, width)
            below = _clamped(yx * down * u + yy * v + centre_y, height)
            share = _share(there - column) * _share(below - row)
            seen = _pixels(plane, present, out_row, out_column, height, width, x_row, x_column)
            found += share[None, :] * seen
    return found


@triton.jit
def _side_ratios(height, width):
    """Width over height in steps between pixels, and height over width; one row is no step high."""
    return (width - 1) / tl.maximum(height - 1, 1), (height - 1) / tl.maximum(width - 1, 1)


@triton.jit
def _clamped(position, size):
    """Positions to the border of zeros round the image, also infinite ones and NaN."""
    return tl.minimum(tl.maximum(position, -1.0), size * 1.0)


@triton.jit
def _searched(centre, reach, size):
    """Where to begin [P] and how many pixels to visit so as to meet all within reach of centre."""
    margin = 1 / 64  # for positions' rounding
    whole = ~(reach < size)  # also where the reach is infinite or NaN
    reach = tl.where(whole, 0.0, reach + margin)
    first = tl.minimum(tl.maximum(tl.ceil(centre - reach), 0.0), size * 1.0)
    first = tl.where(whole, 0.0, first).to(tl.int32)
    count = tl.where(whole, size, tl.floor(2 * reach).to(tl.int32) + 1)
    return first, count


@triton.jit
def _share(distance):
    """How much a pixel weighs at a distance from a position."""
    return tl.maximum(1 - tl.abs(distance), 0.0)


@triton.jit
def _pixels(plane, present, row, column, height, width, x_row, x_column):
    """Every channel [C,P] of the pixels, zero outside of the image."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    at = plane[:, None] + (row * x_row + column * x_column)[None, :]
    return tl.load(at, present[:, None] & inside[None, :], other=0.0)
