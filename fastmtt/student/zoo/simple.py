"""Networks without norms: MLP, LeNet and AlexNet, as the published programs have them."""

from __future__ import annotations

from math import prod
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fastmtt.student.zoo.layers import border, grid_after


class MLP(nn.Module):
    """Two hidden layers of 128 with ReLU."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        """Build for images (C, H, W)."""
        super().__init__()
        self.fc_1 = nn.Linear(prod(image_shape), 128)
        self.fc_2 = nn.Linear(128, 128)
        self.fc_3 = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        hidden = F.relu(self.fc_1(x.flatten(1)))
        return cast(Tensor, self.fc_3(F.relu(self.fc_2(hidden))))


class LeNet(nn.Module):
    """Two convolutions 5x5 with max pooling, two hidden layers of 120 and 84."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, stride: int = 1) -> None:
        """Build for images (C, H, W); ``stride`` is the first convolution's.

        Raises:
            FastmttError: the images are too small.
        """
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(image_shape[0], 6, 5, stride, padding=border(image_shape)),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        height, width = grid_after(self.features, image_shape, "LeNet")
        self.fc_1 = nn.Linear(16 * height * width, 120)
        self.fc_2 = nn.Linear(120, 84)
        self.fc_3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        hidden = F.relu(self.fc_1(self.features(x).flatten(1)))
        return cast(Tensor, self.fc_3(F.relu(self.fc_2(hidden))))


class AlexNet(nn.Module):
    """Five convolutions, three of them with max pooling, and a linear classifier."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, stride: int = 1) -> None:
        """Build for images (C, H, W); ``stride`` is the first convolution's.

        Raises:
            FastmttError: the images are too small.
        """
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(image_shape[0], 128, 5, stride, padding=2 + border(image_shape)),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(128, 192, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 256, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 192, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(192, 192, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        height, width = grid_after(self.features, image_shape, "AlexNet")
        self.fc = nn.Linear(192 * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        return cast(Tensor, self.fc(self.features(x).flatten(1)))
