"""Differentiable siamese augmentation with its draws as data: the affine maps and their transposes.

``x`` is ``[S,B,C,H,W]``; student s undergoes one kind of operation, ``kind[s]``, with per-image
values ``values[s] [B,3]``:

====== ======== ==============================================================================
kind   name     values
====== ======== ==============================================================================
0      none     --
1      color    brightness added, saturation factor, contrast factor (applied in this order)
2      crop     rows and columns shifted, zero outside
3      cutout   centre row and column of the square set to zero (side ``cutout`` times the size)
4      flip     mirrored horizontally where 1
5      scale    factor of the sampling grid, horizontal and vertical
6      rotate   angle of the sampling grid in radians
====== ======== ==============================================================================

For fixed values every map is affine in x, so its pull-back is the transpose of the linear part.
Formulas: Zhao & Bilen, "Dataset Condensation with Differentiable Siamese Augmentation" (2021).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("none", "color", "crop", "cutout", "flip", "scale", "rotate")


def dsa(x: Tensor, kind: Tensor, values: Tensor, cutout: float) -> Tensor:
    """Augment x [S,B,C,H,W] by kind [S] and values [S,B,3]."""
    return _each_student(_APPLY, x, kind, values, cutout)


def dsa_transpose(g: Tensor, kind: Tensor, values: Tensor, cutout: float) -> Tensor:
    """Pull a cotangent of the augmented images back to the images."""
    return _each_student(_TRANSPOSE, g, kind, values, cutout)


Map = Callable[[Tensor, Tensor, float], Tensor]


def _each_student(
    maps: dict[str, Map], x: Tensor, kind: Tensor, values: Tensor, cutout: float
) -> Tensor:
    values = values.to(x.dtype)
    students = [
        maps[KINDS[k]](images, v, cutout)
        for images, v, k in zip(x, values, kind.tolist(), strict=True)
    ]
    return torch.stack(students).contiguous()


def _mixed_with_mean(x: Tensor, factor: Tensor, over: tuple[int, ...]) -> Tensor:
    """factor * x + (1 - factor) * mean: symmetric, hence its own transpose."""
    mean = x.mean(over, keepdim=True)
    return (x - mean) * factor + mean


def _color(x: Tensor, values: Tensor, cutout: float) -> Tensor:
    brightness, saturation, contrast = values.T[..., None, None, None]
    x = _mixed_with_mean(x + brightness, saturation, (1,))
    return _mixed_with_mean(x, contrast, (1, 2, 3))


def _color_transpose(g: Tensor, values: Tensor, cutout: float) -> Tensor:
    _, saturation, contrast = values.T[..., None, None, None]
    return _mixed_with_mean(_mixed_with_mean(g, contrast, (1, 2, 3)), saturation, (1,))


def _crop(x: Tensor, values: Tensor, cutout: float) -> Tensor:
    """out[i,j] = x[i + rows, j + columns], zero outside."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device) + values[:, 0].long()[:, None]
    columns = torch.arange(width, device=x.device) + values[:, 1].long()[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None]
    inside = inside & ((columns >= 0) & (columns < width))[:, None, :]
    flat = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    picked = x.flatten(2).gather(2, flat.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    return picked.view_as(x) * inside[:, None]


def _crop_transpose(g: Tensor, values: Tensor, cutout: float) -> Tensor:
    return _crop(g, -values, cutout)


def _cutout(x: Tensor, values: Tensor, cutout: float) -> Tensor:
    cut = []
    for axis, size in enumerate(x.shape[-2:]):
        hole = int(size * cutout + 0.5)
        first = values[:, axis].long()[:, None] - hole // 2
        # the published code clamps positions to the image: no more, as the square overlaps it
        position = torch.arange(size, device=x.device)
        cut.append((position >= first) & (position < first + hole))
    return x * ~(cut[0][:, :, None] & cut[1][:, None, :])[:, None]


def _flip(x: Tensor, values: Tensor, cutout: float) -> Tensor:
    return torch.where(values[:, 0, None, None, None] > 0.5, x.flip(-1), x)


def _grid(x: Tensor, kind: str, values: Tensor) -> Tensor:
    theta = values.new_zeros(x.shape[0], 2, 3)
    if kind == "scale":
        theta[:, 0, 0], theta[:, 1, 1] = values[:, 0], values[:, 1]
    else:
        cos, sin = values[:, 0].cos(), values[:, 0].sin()
        theta[:, 0, 0], theta[:, 0, 1] = cos, -sin
        theta[:, 1, 0], theta[:, 1, 1] = sin, cos
    return F.affine_grid(theta, list(x.shape), align_corners=True)


def _sampled(kind: str) -> Map:
    def apply(x: Tensor, values: Tensor, cutout: float) -> Tensor:
        return F.grid_sample(x, _grid(x, kind, values), align_corners=True)

    return apply


def _scattered(kind: str) -> Map:
    def transpose(g: Tensor, values: Tensor, cutout: float) -> Tensor:
        # bilinear interpolation (0), zero padding (0); only the images' cotangent
        grid = _grid(g, kind, values)
        return torch.ops.aten.grid_sampler_2d_backward(g, g, grid, 0, 0, True, [True, False])[0]

    return transpose


def _none(x: Tensor, values: Tensor, cutout: float) -> Tensor:
    return x


_APPLY: dict[str, Map] = {
    "none": _none,
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _sampled("scale"),
    "rotate": _sampled("rotate"),
}
_TRANSPOSE: dict[str, Map] = {
    "none": _none,
    "color": _color_transpose,
    "crop": _crop_transpose,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scattered("scale"),
    "rotate": _scattered("rotate"),
}
