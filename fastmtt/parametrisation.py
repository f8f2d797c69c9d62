"""What a synthetic set's stored images are: the training images, or what these are made of.

A parametrisation makes training images of stored ones (``sample``) and carries their cotangents
back (``pull_back``). Where it draws, the draws are data, as those of batches and augmentation are,
so nothing of the images needs to be kept between a student's sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


class Pixels:
    """Stored images are the training images; also what the other parametrisations start from.

    Attributes:
        cells: real images that a stored one is put together from, and shows again.
        in_pixels: whether stored images lie in [0,1], not in the training space.
    """

    cells = 1
    in_pixels = False

    def stored_shape(self, image_shape: Shape) -> Shape:
        """A stored image's (C, H, W), given a training image's."""
        return image_shape

    def image_shape(self, stored_shape: Shape) -> Shape:
        """A training image's (C, H, W), given a stored image's."""
        return stored_shape

    def count(self, rows: int) -> int:
        """How many training images so many stored ones give."""
        return rows

    def labels(self, labels: Tensor) -> Tensor:
        """Training images' labels [S,images,...] of stored images' [S,rows,...]."""
        return labels

    def pull_back_labels(self, g: Tensor, rows: int) -> Tensor:
        """The labels' cotangents [S,images,K] back to [S,rows,K]."""
        return g

    def draw(self, rng: np.random.Generator, rows: int, image_shape: Shape) -> Tensor | None:
        """What a sample of one student's batch draws, by key; None: nothing."""
        return None

    def draw_published(
        self, generator: torch.Generator, rows: int, image_shape: Shape
    ) -> Tensor | None:
        """The same by torch's generator, in the published order."""
        return None

    def sample(self, stored: Tensor, drawn: Tensor | None) -> Tensor:
        """Stored images [S,rows,...] to training images [S,images,C,H,W]."""
        return stored

    def pull_back(self, g: Tensor, drawn: Tensor | None, rows: int) -> Tensor:
        """Cotangents of training images [S,images,C,H,W] to those of stored ones [S,rows,...]."""
        return g

    def noise(self, normal: Tensor) -> Tensor:
        """Stored images to start from as noise, given N(0,1) of their shape."""
        return normal

    def assemble(self, images: Tensor) -> Tensor:
        """Stored images [n,...] of training images [cells*n,C,H,W], those of a cell together."""
        return images

    def views(self, stored: Tensor) -> Tensor:
        """What stored images [n,...] show: [cells*n,C,H,W], those of a cell together."""
        return stored

    def whole(self, stored: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Pixels]:
        """A set to evaluate: images [n,...], their labels, and what still is to be sampled."""
        return stored, labels, self

    def describe(self) -> dict[str, Any]:
        """As JSON values, for :func:`described`."""
        return {"kind": "pixels"}


PIXELS = Pixels()


class Canvas(Pixels):
    """MTT's textures: a training image is a window of a larger canvas, at a random place.

    The canvas is rolled round both axes by independent offsets and its first H x W pixels are
    taken, so that it has no edges (Cazenavette et al., 2022).

    Args:
        size: sides of the canvas in sides of an image.
        samples: windows taken of each canvas in a batch.
    """

    def __init__(self, size: int, samples: int = 1) -> None:
        """Take the sizes as they are."""
        self.size, self.samples, self.cells = size, samples, size**2

    def stored_shape(self, image_shape: Shape) -> Shape:
        """See :class:`Pixels`."""
        channels, height, width = image_shape
        return channels, self.size * height, self.size * width

    def image_shape(self, stored_shape: Shape) -> Shape:
        """See :class:`Pixels`."""
        channels, height, width = stored_shape
        return channels, height // self.size, width // self.size

    def count(self, rows: int) -> int:
        """See :class:`Pixels`."""
        return self.samples * rows

    def labels(self, labels: Tensor) -> Tensor:
        """See :class:`Pixels`: of a window of each canvas, then of another of each."""
        return torch.cat([labels] * self.samples, 1)

    def pull_back_labels(self, g: Tensor, rows: int) -> Tensor:
        """See :class:`Pixels`."""
        return g.unflatten(1, (self.samples, -1)).sum(1)

    def draw(self, rng: np.random.Generator, rows: int, image_shape: Shape) -> Tensor:
        """Offsets down and to the right, int64 [1,samples*rows,2]."""
        _, height, width = self.stored_shape(image_shape)
        offsets = rng.integers(0, (height, width), (self.samples * rows, 2))
        return torch.from_numpy(offsets)[None]

    def draw_published(self, generator: torch.Generator, rows: int, image_shape: Shape) -> Tensor:
        """See :meth:`draw`; one image after the other, down before right."""
        sides = self.stored_shape(image_shape)[1:]
        offsets = [
            [int(torch.randint(side, (1,), generator=generator)) for side in sides]
            for _ in range(self.samples * rows)
        ]
        return torch.tensor(offsets)[None]

    def sample(self, stored: Tensor, drawn: Tensor | None) -> Tensor:
        """See :class:`Pixels`."""
        height, width = stored.shape[-2] // self.size, stored.shape[-1] // self.size
        copies = stored.repeat(1, self.samples, 1, 1, 1).flatten(-2)
        places = self._places(stored.shape[-2:], drawn, stored.device)
        places = places.flatten(-2)[:, :, None].expand(*copies.shape[:3], -1)
        return copies.gather(-1, places).unflatten(-1, (height, width))

    def pull_back(self, g: Tensor, drawn: Tensor | None, rows: int) -> Tensor:
        """See :class:`Pixels`."""
        canvas = self.stored_shape(g.shape[-3:])[1:]
        places = self._places(canvas, drawn, g.device).flatten(-2)[:, :, None]
        flat = g.new_zeros(*g.shape[:3], canvas[0] * canvas[1])
        flat.scatter_(-1, places.expand(*g.shape[:3], -1), g.flatten(-2))
        # each window's pixels are distinct, so only the windows of one canvas are summed
        return flat.unflatten(-1, canvas).unflatten(1, (self.samples, -1)).sum(1)

    def assemble(self, images: Tensor) -> Tensor:
        """See :class:`Pixels`: the images side by side, row by row."""
        grid = images.unflatten(0, (self.size, self.size, -1))  # [i,j,n,C,H,W]
        return grid.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3).contiguous()

    def views(self, stored: Tensor) -> Tensor:
        """See :class:`Pixels`: the canvas cut into images."""
        grid = stored.unflatten(3, (self.size, -1)).unflatten(2, (self.size, -1))
        return grid.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).contiguous()

    def describe(self) -> dict[str, Any]:
        """See :class:`Pixels`."""
        return {"kind": "canvas", "size": self.size, "samples": self.samples}

    def _places(self, canvas: Sequence[int], drawn: Tensor | None, device: torch.device) -> Tensor:
        """Which canvas pixel each window's pixel is, int64 [S,images,H,W]."""
        assert drawn is not None
        offsets = drawn.to(device)[..., None]
        rows, columns = (
            (torch.arange(side // self.size, device=device) - offsets[:, :, axis]) % side
            for axis, side in enumerate(canvas)
        )
        return rows[..., None] * canvas[1] + columns[..., None, :]


def stacked(drawn: Sequence[Tensor | None]) -> Tensor | None:
    """What S students drew, side by side; None where they draw nothing."""
    parts = [one for one in drawn if one is not None]
    return torch.cat(parts) if parts else None
