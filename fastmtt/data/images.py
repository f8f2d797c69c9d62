"""Images kept as bytes and brought into their training space when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastmtt.data.spaces import Space

_PART = 128  # images brought into their space at a time: intermediate results stay in cache


class Images:
    """Integer images that read as float32 ones in their training space.

    A quarter of the memory, paid for by the same arithmetic at every reading: an image read here
    has the bits of `whole`'s, whatever it is read together with.

    Args:
        raw: [n,C,H,W] uint8.
        space: The training space.
        white: The integer that means 1.0.
    """

    dtype = torch.float32

    def __init__(self, raw: Tensor, space: Space, white: int) -> None:
        self.raw, self.space, self.white = raw, space, white

    @property
    def shape(self) -> torch.Size:
        """(n, C, H, W)."""
        return self.raw.shape

    @property
    def device(self) -> torch.device:
        """Where the integers lie and the images are made."""
        return self.raw.device

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Give float32 [*rows.shape,C,H,W] in the training space."""
        picked = self.raw[rows]
        pixels = as_pixels(picked.reshape(-1, *self.shape[1:]), self.white)
        return self.space.transform(pixels).reshape(picked.shape)

    def split(self, count: int) -> Iterator[Tensor]:
        """Go through all images in order, `count` at a time, as `torch.split` does."""
        begins = range(0, max(len(self), 1), count)  # of no images, one empty part
        return (self[begin : begin + count] for begin in begins)

    def to(self, device: torch.device | str) -> Images:
        """The same on another device, still as integers."""
        return Images(self.raw.to(device), self.space, self.white)

    def whole(self) -> Tensor:
        """All images as one float32 tensor [n,C,H,W]."""
        images = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for part, out in zip(self.split(_PART), images.split(_PART), strict=True):
            out.copy_(part)
        return images


def as_pixels(images: Tensor, white: int) -> Tensor:
    """Give [n,C,H,W] integers as new float32 ones in [0,1], as ToTensor does it."""
    # A tensor and not a number: by a number torch's GPU kernels multiply with its reciprocal.
    scale = torch.full((1,), float(white), dtype=torch.float32, device=images.device)
    return images.to(torch.float32, copy=True).div_(scale)
