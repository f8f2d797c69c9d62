"""IDC's parametrisation: a stored image holds several smaller ones, enlarged to train on.

Kim et al., ICML 2022, arXiv 2205.14959. Stored images lie in [0,1].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.parametrisation import PIXELS, Canvas, Pixels, Shape

KINDS = ("single", "multi", "bound")
_GREY = 0.5  # beside an image that its cells do not divide


class Decode(Pixels):
    """Cuts a stored image into factor x factor cells and enlarges each to the image's size.

    Args:
        factor: cells on a side.
        kind: "single"; "multi", by all factors from 1 to this one; or "bound", as many images by a
            large factor as leave the total at most ``bound``, the rest by smaller ones.
        bound: see ``kind``.
    """

    def __init__(self, factor: int, kind: str = "single", bound: int = 128) -> None:
        """Take the choices as they are."""
        self.factor, self.kind, self.bound, self.cells = factor, kind, bound, factor**2

    def count(self, rows: int) -> int:
        """See :class:`Pixels`."""
        return sum((end - begin) * factor**2 for begin, end, factor in self._parts(rows))

    def labels(self, labels: Tensor) -> Tensor:
        """See :class:`Pixels`: cell by cell, of all images each."""
        parts = self._parts(labels.shape[1])
        return torch.cat([p for b, e, f in parts for p in [labels[:, b:e]] * f**2], 1)

    def pull_back_labels(self, g: Tensor, rows: int) -> Tensor:
        """See :class:`Pixels`."""
        total, at = g.new_zeros(g.shape[0], rows, *g.shape[2:]), 0
        for begin, end, factor in self._parts(rows):
            size = (end - begin) * factor**2
            part = g[:, at : at + size].unflatten(1, (factor**2, -1))
            total[:, begin:end] += part.sum(1)
            at += size
        return total

    def sample(self, stored: Tensor, drawn: Tensor | None) -> Tensor:
        """See :class:`Pixels`."""
        parts = self._parts(stored.shape[1])
        return torch.cat([enlarged(stored[:, b:e], f) for b, e, f in parts], 1)

    def pull_back(self, g: Tensor, drawn: Tensor | None, rows: int) -> Tensor:
        """See :class:`Pixels`."""
        total, at = g.new_zeros(g.shape[0], rows, *g.shape[2:]), 0
        for begin, end, factor in self._parts(rows):
            size = (end - begin) * factor**2
            total[:, begin:end] += enlarged_transpose(g[:, at : at + size], factor)
            at += size
        return total

    def assemble(self, images: Tensor) -> Tensor:
        """See :class:`Pixels`: each image, made small, in its cell; row by row."""
        cells = images.unflatten(0, (self.cells, -1))
        stored = torch.empty_like(cells[0])
        edges = [_edges(side, self.factor) for side in images.shape[-2:]]
        places = [(top, left) for top in edges[0] for left in edges[1]]
        for cell, ((top, bottom), (left, right)) in zip(cells, places, strict=True):
            small = F.interpolate(cell, size=(bottom - top, right - left))
            stored[:, :, top:bottom, left:right] = small
        return stored

    def views(self, stored: Tensor) -> Tensor:
        """See :class:`Pixels`: the cells, enlarged, as evaluation trains on them."""
        return enlarged(stored[None], self.factor)[0]

    def whole(self, stored: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Pixels]:
        """See :class:`Pixels`: all that is decoded, by "single"."""
        repeated = torch.cat([labels] * self.cells)
        return self.views(stored), repeated, PIXELS

    def describe(self) -> dict[str, Any]:
        """See :class:`Pixels`."""
        return {"kind": "decode", "factor": self.factor, "type": self.kind, "bound": self.bound}

    def _parts(self, rows: int) -> list[tuple[int, int, int]]:
        """Which stored images are decoded by which factor: (begin, end, factor)."""
        if self.kind == "single":
            return [(0, rows, self.factor)]
        if self.kind == "multi":
            return [(0, rows, factor) for factor in range(1, self.factor + 1)]
        parts, begin, left = [], 0, self.bound
        for factor in range(self.factor, 0, -1):
            rest = rows - begin
            # every image behind these takes at least one of what is left
            some = rest if factor == 1 else min(max(left - rest, 0) // factor**2, rest)
            if some:
                parts.append((begin, begin + some, factor))
            begin, left = begin + some, left - some * factor**2
        return parts


class InPixels(Pixels):
    """Stores pixels in [0,1] and trains on them normalised.

    Args:
        inner: what is stored.
        mean: of each channel.
        std: of each channel.
    """

    in_pixels = True

    def __init__(self, inner: Pixels, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take the normalisation as it is."""
        self.inner, self.mean, self.std = inner, tuple(mean), tuple(std)
        self.cells = inner.cells

    def stored_shape(self, image_shape: Shape) -> Shape:
        """See :class:`Pixels`."""
        return self.inner.stored_shape(image_shape)

    def image_shape(self, stored_shape: Shape) -> Shape:
        """See :class:`Pixels`."""
        return self.inner.image_shape(stored_shape)

    def count(self, rows: int) -> int:
        """See :class:`Pixels`."""
        return self.inner.count(rows)

    def labels(self, labels: Tensor) -> Tensor:
        """See :class:`Pixels`."""
        return self.inner.labels(labels)

    def pull_back_labels(self, g: Tensor, rows: int) -> Tensor:
        """See :class:`Pixels`."""
        return self.inner.pull_back_labels(g, rows)

    def sample(self, stored: Tensor, drawn: Tensor | None) -> Tensor:
        """See :class:`Pixels`."""
        return self._normalised(self.inner.sample(stored, drawn))

    def pull_back(self, g: Tensor, drawn: Tensor | None, rows: int) -> Tensor:
        """See :class:`Pixels`."""
        return self.inner.pull_back(g / _columns(self.std, g), drawn, rows)

    def noise(self, normal: Tensor) -> Tensor:
        """See :class:`Pixels`: grey with noise."""
        return (normal / 4 + _GREY).clamp(0, 1)

    def assemble(self, images: Tensor) -> Tensor:
        """See :class:`Pixels`."""
        pixels = images * _columns(self.std, images) + _columns(self.mean, images)
        return self.inner.assemble(pixels.clamp(0, 1))

    def views(self, stored: Tensor) -> Tensor:
        """See :class:`Pixels`."""
        return self._normalised(self.inner.views(stored))

    def whole(self, stored: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Pixels]:
        """See :class:`Pixels`."""
        images, repeated, rest = self.inner.whole(stored, labels)
        return self._normalised(images), repeated, rest

    def describe(self) -> dict[str, Any]:
        """See :class:`Pixels`."""
        stored = self.inner.describe()
        return {"kind": "in pixels", "mean": self.mean, "std": self.std, "stored": stored}

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels - _columns(self.mean, pixels)) / _columns(self.std, pixels)


def enlarged(stored: Tensor, factor: int) -> Tensor:
    """Cells of stored images [S,n,C,H,W], bilinear to the image's size: [S,factor^2*n,C,H,W]."""
    if factor == 1:
        return stored
    height, width = stored.shape[-2:]
    down, right = -height % factor, -width % factor
    padded = F.pad(stored, (0, right, 0, down), value=_GREY)
    cells = padded.unflatten(4, (factor, -1)).unflatten(3, (factor, -1))  # [S,n,C,i,h,j,w]
    cells = cells.permute(0, 3, 5, 1, 2, 4, 6).flatten(1, 3)
    rows, columns = (_stretch(side, factor, stored) for side in (height, width))
    return rows @ cells @ columns.T


def enlarged_transpose(g: Tensor, factor: int) -> Tensor:
    """The transpose of :func:`enlarged`'s linear part: [S,factor^2*n,C,H,W] to [S,n,C,H,W]."""
    if factor == 1:
        return g
    height, width = g.shape[-2:]
    rows, columns = (_stretch(side, factor, g) for side in (height, width))
    cells = (rows.T @ g @ columns).unflatten(1, (factor, factor, -1))  # [S,i,j,n,C,h,w]
    padded = cells.permute(0, 3, 4, 1, 5, 2, 6).flatten(5, 6).flatten(3, 4)
    return padded[..., :height, :width]


def decoding(description: Mapping[str, Any]) -> Pixels | None:
    """The parametrisation of this file that describes itself so; None: none does."""
    match description:
        case {"kind": "decode", "factor": int(factor), "type": str(kind), "bound": int(bound)} if (
            factor >= 1 and bound >= 1 and kind in KINDS
        ):
            return Decode(factor, kind, bound)
        case {"kind": "in pixels", "mean": list(mean), "std": list(std), "stored": dict(stored)}:
            inner = PIXELS if stored == PIXELS.describe() else decoding(stored)
            numbers = all(type(value) is float for value in (*mean, *std))
            fits = len(mean) == len(std) > 0 and numbers and min(std) > 0
            return InPixels(inner, mean, std) if inner is not None and fits else None
    return None


def _stretch(side: int, factor: int, like: Tensor) -> Tensor:
    """Bilinear enlarging of a cell's side to ``side`` pixels, as a matrix."""
    small = -(-side // factor)
    eye = torch.eye(small, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], size=side, mode="linear", align_corners=False)[0].T


def _edges(side: int, factor: int) -> list[tuple[int, int]]:
    """Where cells begin and end, the first ones a pixel larger where they do not divide a side."""
    small, larger = divmod(side, factor)
    begins = [i * small + min(i, larger) for i in range(factor + 1)]
    return list(zip(begins[:-1], begins[1:], strict=True))


def _columns(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def described(description: Mapping[str, Any] | None) -> Pixels:
    """The parametrisation of a saved set; of one that says nothing, pixels.

    Raises:
        FastmttError: it says what no version of ours writes.
    """
    match description:
        case None | {"kind": "pixels"}:
            return PIXELS
        case {"kind": "canvas", "size": int(size), "samples": int(samples)} if (
            min(size, samples) >= 1
        ):
            return Canvas(size, samples)
    found = decoding(description) if isinstance(description, Mapping) else None
    if found is None:
        raise FastmttError(f"it is stored as {description!r}, wanted pixels, a canvas or cells")
    return found
