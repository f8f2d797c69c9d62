"""Pictures of distilled images, as the published programs show theirs."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from fastmtt.files import replacing

_CLIP = 2.5  # standard deviations
_SMALL, _ENLARGE = 64, 4  # images below so many pixels are shown so many times as large


def save_image_grid(path: Path, pixels: Tensor) -> None:
    """Write a PNG of images [n,C,H,W] in pixel space: ten a row, each from dark to bright.

    Clipped to mean ± 2.5 standard deviations of all, small ones enlarged four times.
    """
    with replacing(path) as temporary:
        save_image(
            _for_the_eye(pixels.detach().cpu().float()),
            temporary,
            format="PNG",
            nrow=10,
            normalize=True,
            scale_each=True,
        )


def _for_the_eye(pixels: Tensor) -> Tensor:
    std, mean = torch.std_mean(pixels)
    pixels = pixels.clamp(mean - _CLIP * std, mean + _CLIP * std)
    if pixels.shape[-1] < _SMALL:
        pixels = pixels.repeat_interleave(_ENLARGE, 2).repeat_interleave(_ENLARGE, 3)
    return pixels
