"""What IDC does to ImageNet's images, with its draws as data: crops, flips, colours, lighting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fastmtt.augment import Parameters
from fastmtt.data import Normalised

_AREA = 0.5, 1.0  # of a crop, in images
_LOG_ASPECT = math.log(3 / 4), math.log(4 / 3)  # of its height and width
_TRIES = 10
_JITTER = 0.4
_LIGHTING = 0.1  # standard deviation along each principal axis of ImageNet's colours
# Columns: those axes, each times its variance.
_LIGHT = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
) * [0.2175, 0.0188, 0.0045]


class ImageNetAugment:
    """A resized crop, a mirror image, jittered colours and AlexNet's lighting, each image's own.

    torchvision's RandomResizedCrop(scale=(0.5, 1)), RandomHorizontalFlip and ColorJitter(0.4, 0.4,
    0.4) one after another, then Krizhevsky et al.'s noise along the colours' principal axes
    (NIPS 2012). Colours are pixels', so images leave their training space for it.

    Args:
        space: of the images.
    """

    def __init__(self, space: Normalised) -> None:
        """Take the space as it is."""
        self.space = space

    def draw(self, rng: np.random.Generator, batch: int, image_shape: Sequence[int]) -> Parameters:
        """Values float32 [1,1,B,14] of one student's batch, by key.

        Of each image: the crop's top, left, height and width; whether it is mirrored; which of
        brightness, contrast and saturation comes first, second and third; their factors; the noise
        along each axis.
        """
        values = np.concatenate(
            [
                _crops(rng, batch, *image_shape[1:]),
                rng.random((batch, 1)) < 0.5,
                rng.permuted(np.tile(np.arange(3), (batch, 1)), axis=1),
                rng.uniform(1 - _JITTER, 1 + _JITTER, (batch, 3)),
                rng.normal(0, _LIGHTING, (batch, 3)),
            ],
            axis=1,
        )
        tensor = torch.from_numpy(values.astype(np.float32))[None, None]
        return Parameters(torch.zeros(1, 1, dtype=torch.int64), tensor)

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Augment images [S,B,3,H,W] of the training space."""
        values = parameters.values[0].to(x)
        crop, mirrored, order, factors, noise = values.split([4, 1, 3, 3, 3], dim=2)
        x = _cropped(self.space.to_pixels(x), *crop.unbind(2))
        x = torch.where(mirrored[..., None, None] > 0, x.flip(-1), x)
        for place in order.unbind(2):
            for number, adjust in enumerate(_colours()):
                factor = torch.where(place == number, factors[..., number], 1)
                x = adjust(x.flatten(0, 1), factor.flatten()).view_as(x)
        light = noise @ torch.from_numpy(_LIGHT).to(x).T
        return self.space.transform(x + light[..., None, None])


def _colours() -> tuple[Callable[..., Tensor], ...]:
    """What jitters brightness, contrast and saturation, each image by a factor of its own."""
    # imported here: it takes a moment, and all commands but those for ImageNet do without
    from kornia import enhance

    return (
        enhance.adjust_brightness_accumulative,
        enhance.adjust_contrast_with_mean_subtraction,
        enhance.adjust_saturation_with_gray_subtraction,
    )


def _crops(rng: np.random.Generator, batch: int, height: int, width: int) -> np.ndarray:
    """Top, left, height and width [B,4]: the first try that fits, else the whole image."""
    area = height * width * rng.uniform(*_AREA, (batch, _TRIES))
    aspect = np.exp(rng.uniform(*_LOG_ASPECT, (batch, _TRIES)))
    heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (heights <= height) & (widths <= width)
    first = np.arange(batch), fits.argmax(1)
    some = fits.any(1)
    sides = np.stack(
        [np.where(some, heights[first], height), np.where(some, widths[first], width)], axis=1
    )
    room = [height, width] - sides.astype(np.int64)
    return np.concatenate([rng.integers(0, room + 1), sides], axis=1)


def _cropped(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Crops of images [S,B,C,H,W], bilinear to the images' size."""
    rows, columns = (
        _enlarging(x.shape[axis], begin, size)
        for axis, begin, size in ((-2, top, height), (-1, left, width))
    )
    return rows[:, :, None] @ x @ columns[:, :, None].mT


def _enlarging(side: int, begin: Tensor, size: Tensor) -> Tensor:
    """Bilinear enlarging of a part of a side to all of it, as matrices [S,B,side,side]."""
    pixels = torch.arange(side, dtype=begin.dtype, device=begin.device)
    at = (pixels + 0.5) * size[..., None] / side - 0.5
    at = begin[..., None] + torch.minimum(at.clamp(min=0), size[..., None] - 1)
    return (1 - (pixels - at[..., None]).abs()).clamp(min=0)
