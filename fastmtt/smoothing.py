"""FTD's moving average of the synthetic images (Du et al. 2023, arXiv 2211.11004)."""

from __future__ import annotations

import torch
from torch import Tensor


class MovingAverage:
    """shadow <- decay * shadow + (1 - decay) * images after every outer step.

    No correction of the start's bias, as in the published program: the shadow starts as the images.

    Args:
        images: what is averaged; the shadow has its shape and dtype.
        decay: in [0, 1).
    """

    def __init__(self, images: Tensor, decay: float) -> None:
        """Start from the images as they are."""
        self.shadow, self.decay = images.detach().clone(), decay

    @torch.no_grad()
    def update(self, images: Tensor) -> None:
        """Take a step's images in."""
        self.shadow.mul_(self.decay).add_(images, alpha=1 - self.decay)
