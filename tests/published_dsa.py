"""The published formulas of DSA (Zhao & Bilen, 2021), spelt out for fixed values, in plain torch.

`augment(x, kind, values)` takes one student's images [B,C,H,W] and the values fastmtt drew, [B,3].
"""

import torch

NONE, COLOR, CROP, CUTOUT, FLIP, SCALE, ROTATE = range(7)
RATIO_CUTOUT = 0.5


def augment(x, kind, values, ratio_cutout=RATIO_CUTOUT):
    if kind == CUTOUT:
        return torch.stack([_cutout(*pair, ratio_cutout) for pair in zip(x, values, strict=True)])
    one = {COLOR: _color, CROP: _crop, FLIP: _flip, SCALE: _scale, ROTATE: _rotate}.get(kind)
    return x if one is None else torch.stack([one(*pair) for pair in zip(x, values, strict=True)])


def _color(x, values):
    brightness, saturation, contrast = values
    x = x + brightness
    mean = x.mean(0, keepdim=True)
    x = (x - mean) * saturation + mean
    mean = x.mean()
    return (x - mean) * contrast + mean


def _crop(x, values):
    height, width = x.shape[1:]
    rows, columns = int(values[0]), int(values[1])
    wide = x.new_zeros(x.shape[0], 3 * height, 3 * width)
    wide[:, height : 2 * height, width : 2 * width] = x
    top, left = height + rows, width + columns
    return wide[:, top : top + height, left : left + width]


def _cutout(x, values, ratio):
    height, width = x.shape[1:]
    mask = torch.ones_like(x)
    for i in range(hole_rows := int(ratio * height + 0.5)):
        for j in range(hole_columns := int(ratio * width + 0.5)):
            row = min(max(i + int(values[0]) - hole_rows // 2, 0), height - 1)
            column = min(max(j + int(values[1]) - hole_columns // 2, 0), width - 1)
            mask[:, row, column] = 0
    return x * mask


def _flip(x, values):
    return x[:, :, torch.arange(x.shape[2] - 1, -1, -1)] if values[0] == 1 else x


def _scale(x, values):
    zero = torch.zeros_like(values[0])
    return _sampled(x, values[0], zero, zero, values[1])


def _rotate(x, values):
    cos, sin = torch.cos(values[0]), torch.sin(values[0])
    return _sampled(x, cos, -sin, sin, cos)


def _sampled(x, xx, xy, yx, yy):
    """Bilinear with zeros outside, corners at -1 and 1: hat functions round each sampling point."""
    height, width = x.shape[1:]
    v, u = torch.meshgrid(
        torch.linspace(-1, 1, height, dtype=x.dtype),
        torch.linspace(-1, 1, width, dtype=x.dtype),
        indexing="ij",
    )
    column = ((xx * u + xy * v) + 1) / 2 * (width - 1)
    row = ((yx * u + yy * v) + 1) / 2 * (height - 1)
    rows = (1 - (row[..., None] - torch.arange(height)).abs()).clamp_min(0)
    columns = (1 - (column[..., None] - torch.arange(width)).abs()).clamp_min(0)
    return torch.einsum("ijr,ijc,krc->kij", rows, columns, x)
