"""IDC's networks (Kim et al., 2022, arXiv 2205.14959), where the field's have other layouts."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from fastmtt.errors import FastmttError
from fastmtt.student.zoo.convnet import DEPTH, WIDTH, ConvNet
from fastmtt.student.zoo.layers import Norm, make_norm
from fastmtt.student.zoo.resnet import WIDTHS, make_stage

CIFAR_WIDTHS = (32, 64, 128, 256)
CIFAR, SMALL, MIDDLE = 32, 64, 128  # largest sides with CIFAR's widths and with each smaller stem
DENSE_BLOCKS, GROWTH = (6, 12, 24, 16), 12


class GroupedConvNet(nn.Module):
    """The field's ConvNet whose parameters are all convolutions', then all norms', then the rest.

    Args:
        image_shape: (C, H, W).
        classes: K.
        depth: blocks.
        width: of 128 channels, the share there is.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        depth: int = DEPTH,
        width: float = 1.0,
    ) -> None:
        """Build as ``ConvNet`` is built, with fresh weights that are equal to its."""
        super().__init__()
        plain = ConvNet(image_shape, classes, depth=depth, width=int(WIDTH * width))
        kinds = ("conv", "norm", "act", "pool")
        layers = list(plain.features)
        self.layers = nn.ModuleDict(
            {kind: nn.ModuleList(layers[i :: len(kinds)]) for i, kind in enumerate(kinds)}
        )
        self.classifier = plain.classifier

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        kinds = cast("list[nn.ModuleList]", list(self.layers.values()))
        for block in zip(*kinds, strict=True):
            for layer in block:
                x = layer(x)
        return cast(Tensor, self.classifier(x.flatten(1)))


class IDCResNet(nn.Module):
    """A stem by the images' size, four stages of basic blocks, a mean over pixels, a linear layer.

    Images of up to 32 pixels a side take widths 32 to 256, larger ones 64 to 512. A convolution's
    weights start as N(0, 2 / (k^2 C_out)).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        depth: int,
        norm: Norm = "instancenorm",
        pooled: bool = False,
    ) -> None:
        """Build for images (C, H, W).

        Args:
            image_shape: (C, H, W).
            classes: K.
            depth: 10 or 18.
            norm: "instancenorm" or "batchnorm".
            pooled: ResNetAP: halve by average pooling, not by strides.

        Raises:
            FastmttError: the images are too small for the last stage.
        """
        super().__init__()
        side = min(image_shape[1:])
        if side < 2 * 2 ** len(WIDTHS[1:]):
            raise FastmttError(
                f"IDC's ResNets halve their images three times and want at least 16x16 pixels, got "
                f"{image_shape[1]}x{image_shape[2]}; take larger images or another network"
            )
        widths = CIFAR_WIDTHS if side <= CIFAR else WIDTHS
        make_stem = _pooled_stem if pooled else _stem
        self.stem = make_stem(image_shape[0], widths[0], side, norm)
        inputs, blocks = (widths[0], *widths), (depth - 2) // 8
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            make_stage(inputs[i], widths[i], blocks, 2 if i else 1, norm, pooled) for i in range(4)
        )
        self.classifier = nn.Linear(widths[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        x = self.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return cast(Tensor, self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def _pooled_stem(channels: int, width: int, side: int, norm: Norm) -> nn.Sequential:
    """ResNetAP's: convolution with stride 1, norm, ReLU and, of larger images, average pooling."""
    kernel, pooling = (3, 1) if side <= SMALL else (3, 2) if side <= MIDDLE else (7, 4)
    conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    pool = [nn.AvgPool2d(pooling)] if pooling > 1 else []
    return nn.Sequential(conv, *make_norm(norm, (width,)), nn.ReLU(), *pool)


def _stem(channels: int, width: int, side: int, norm: Norm) -> nn.Sequential:
    """ResNet's: a 3x3 convolution for small images, else ImageNet's with stride and max pooling."""
    pool: list[nn.Module] = []
    if side <= SMALL:
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    else:
        conv = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
        pool = [nn.MaxPool2d(3, 2, padding=1)]
    return nn.Sequential(conv, *make_norm(norm, (width,)), nn.ReLU(), *pool)


def dense_net(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's DenseNet of growth 12 with a stem for CIFAR, PyTorch's default weights.

    Raises:
        FastmttError: the images are too small for its three halvings.
    """
    if min(image_shape[1:]) < 8:
        raise FastmttError(
            f"a DenseNet halves its images three times and wants at least 8x8 pixels, got "
            f"{image_shape[1]}x{image_shape[2]}; take larger images or another network"
        )
    from torchvision.models import DenseNet

    width = 2 * GROWTH
    net = DenseNet(GROWTH, DENSE_BLOCKS, width, num_classes=classes)
    net.features.conv0 = nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False)
    net.features.norm0 = net.features.relu0 = net.features.pool0 = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    return cast(nn.Module, net)


def efficient_net(image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's EfficientNet-B0 with fresh weights.

    Raises:
        FastmttError: the images are not of three channels.
    """
    if image_shape[0] != 3:
        raise FastmttError(
            f"EfficientNet-B0 takes images of 3 channels, got {image_shape[0]}; take another "
            "network"
        )
    from torchvision.models import efficientnet_b0

    return cast(nn.Module, efficientnet_b0(weights=None, num_classes=classes))
