"""ResNets for small images (He et al., 2016), with strides or with average pooling."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fastmtt.errors import FastmttError
from fastmtt.student.zoo.layers import Norm, make_norm

WIDTHS = (64, 128, 256, 512)
RESNET10, RESNET18 = (1, 1, 1, 1), (2, 2, 2, 2)


class BasicBlock(nn.Module):
    """Two convolutions 3x3 with norms, added to the input or to a 1x1 convolution of it.

    The image is halved by the first convolution's stride or, where ``pooled``, by average pooling
    behind its ReLU.
    """

    def __init__(self, inputs: int, width: int, stride: int, norm: Norm, *, pooled: bool) -> None:
        """Build for ``inputs`` channels."""
        super().__init__()
        self.pooling = stride if pooled else 1
        step = 1 if pooled else stride
        self.conv1 = nn.Conv2d(inputs, width, 3, step, padding=1, bias=False)
        (self.bn1,) = make_norm(norm, (width,))
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        (self.bn2,) = make_norm(norm, (width,))
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            pooling = [nn.AvgPool2d(stride)] if pooled else []
            conv = nn.Conv2d(inputs, width, 1, step, bias=False)
            self.shortcut = nn.Sequential(conv, *pooling, *make_norm(norm, (width,)))

    def forward(self, x: Tensor) -> Tensor:
        """Activations [B,C,H,W] to the block's."""
        out = F.relu(self.bn1(self.conv1(x)))
        if self.pooling > 1:
            out = F.avg_pool2d(out, self.pooling)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """conv3x3, four stages of basic blocks at 64 to 512 channels, a linear classifier.

    With strides the last planes are averaged to one pixel; where ``pooled`` the classifier sees
    them whole, as the published ones do.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        blocks: tuple[int, int, int, int] = RESNET18,
        norm: Norm = "instancenorm",
        pooled: bool = False,
        stem_stride: int = 1,
    ) -> None:
        """Build for images (C, H, W).

        Args:
            image_shape: (C, H, W).
            classes: K.
            blocks: basic blocks of each stage.
            norm: "instancenorm" or "batchnorm".
            pooled: halve by average pooling, not by strides.
            stem_stride: of the first convolution.

        Raises:
            FastmttError: nothing is left of the images in the last stage, or one pixel only, of
                which an instance norm leaves nothing.
        """
        super().__init__()
        height, column = (_last_size(s, stem_stride, pooled) for s in image_shape[1:])
        least = 2 if norm == "instancenorm" else 1
        if height * column < least:
            raise FastmttError(
                f"of {image_shape[1]}x{image_shape[2]} images the last stage of a ResNet has "
                f"{height}x{column} pixels, which leaves {norm} nothing to learn from; take larger "
                "ones or another network"
            )
        self.conv1 = nn.Conv2d(image_shape[0], WIDTHS[0], 3, stem_stride, padding=1, bias=False)
        (self.bn1,) = make_norm(norm, (WIDTHS[0],))
        inputs = (WIDTHS[0], *WIDTHS)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            make_stage(inputs[i], WIDTHS[i], blocks[i], 2 if i else 1, norm, pooled)
            for i in range(4)
        )
        self.pooled = pooled
        self.classifier = nn.Linear(WIDTHS[-1] * (height * column if pooled else 1), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        x = x if self.pooled else F.adaptive_avg_pool2d(x, 1)
        return cast(Tensor, self.classifier(x.flatten(1)))


def make_stage(
    inputs: int, width: int, blocks: int, stride: int, norm: Norm, pooled: bool
) -> nn.Sequential:
    """Basic blocks of one width, of which the first halves the image where ``stride`` is 2."""
    first = BasicBlock(inputs, width, stride, norm, pooled=pooled)
    rest = (BasicBlock(width, width, 1, norm, pooled=pooled) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _last_size(size: int, stem_stride: int, pooled: bool) -> int:
    """A side of the last stage's planes: a stride rounds up, a pooling rounds down."""
    size = -(-size // stem_stride)
    for _ in WIDTHS[1:]:
        size = size // 2 if pooled else -(-size // 2)
    return size
