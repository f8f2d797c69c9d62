"""The field's ConvNet: blocks of conv3x3, instance norm, ReLU and average pooling."""

from __future__ import annotations

import re
from typing import cast

from torch import Tensor, nn

from fastmtt.errors import FastmttError

DEPTH, WIDTH = 3, 128


def parse(name: str) -> tuple[int, int] | None:
    """(depth, width) of a factory name such as ConvNetD4 or ConvNetD2W32; None if it is none."""
    match = re.fullmatch(r"ConvNet(?:D([1-9]))?(?:W([1-9]\d*))?", name)
    if match is None:
        return None
    return int(match[1] or DEPTH), int(match[2] or WIDTH)


class ConvNet(nn.Module):
    """depth x (conv3x3, GroupNorm(C, C), ReLU, average pool 2x2), then a linear classifier.

    Gidaris & Komodakis' network in the form of "Dataset Condensation" (Zhao et al., 2021); module
    names and parameter order equal the published trajectory-matching programs'.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        depth: int = DEPTH,
        width: int = WIDTH,
    ) -> None:
        """Build for images (C, H, W).

        Raises:
            FastmttError: the images vanish before the last block.
        """
        super().__init__()
        channels, height, column = image_shape
        # the published networks pad MNIST's 28x28 to 32x32 in the first convolution
        padding = 3 if channels == 1 and (height, column) == (28, 28) else 1
        height, column = height + 2 * (padding - 1), column + 2 * (padding - 1)
        if min(height, column) >> depth == 0:
            raise FastmttError(
                f"a ConvNet of depth {depth} halves its images {depth} times; {height}x{column} "
                f"images allow at most depth {min(height, column).bit_length() - 1}"
            )
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=1 if block else padding),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (height >> depth) * (column >> depth), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        return cast(Tensor, self.classifier(self.features(x).flatten(1)))
