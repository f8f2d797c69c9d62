"""VGG11 with a norm behind each convolution (Simonyan & Zisserman, 2015), for small images."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from fastmtt.student.zoo.layers import Norm, border, grid_after, make_norm

POOL = 0
VGG11 = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)


class VGG(nn.Module):
    """Convolutions 3x3 with norm and ReLU, max pooling in between; a linear classifier."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        widths: tuple[int, ...] = VGG11,
        norm: Norm = "instancenorm",
        last_stride: int = 1,
    ) -> None:
        """Build for images (C, H, W).

        Args:
            image_shape: (C, H, W).
            classes: K.
            widths: channels of each convolution, ``POOL`` for a max pooling.
            norm: "instancenorm" or "batchnorm".
            last_stride: of the last pooling, whose window is one pixel: 2 brings the 2x2 that is
                left of 64x64 images to 1x1.

        Raises:
            FastmttError: the images are too small.
        """
        super().__init__()
        layers: list[nn.Module] = []
        channels, padding = image_shape[0], 1 + border(image_shape)
        for width in widths:
            if width == POOL:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=padding), *make_norm(norm, (width,))]
            layers.append(nn.ReLU(inplace=True))
            channels, padding = width, 1
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, last_stride))
        height, column = grid_after(self.features, image_shape, "VGG11")
        self.classifier = nn.Linear(channels * height * column, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        return cast(Tensor, self.classifier(self.features(x).flatten(1)))
