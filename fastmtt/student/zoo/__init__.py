"""Networks of the field by the names people know."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from fastmtt.errors import FastmttError
from fastmtt.student.zoo import convnet, from_timm
from fastmtt.student.zoo.convnet import ConvNet
from fastmtt.student.zoo.idc import GroupedConvNet, IDCResNet, dense_net, efficient_net
from fastmtt.student.zoo.resnet import RESNET10, ResNet
from fastmtt.student.zoo.simple import MLP, AlexNet, LeNet
from fastmtt.student.zoo.vgg import VGG

__all__ = ["NETWORKS", "ConvNet", "known_names", "make_network"]

# Of the networks that are no ConvNet: what builds them for images (C, H, W) and K classes. "Tiny"
# are those for 64x64 images; hyphens are IDC's.
NETWORKS: dict[str, Callable[[tuple[int, int, int], int], nn.Module]] = {
    "MLP": MLP,
    "MLP_Tiny": MLP,
    "LeNet": LeNet,
    "LeNet_Tiny": partial(LeNet, stride=2),
    "AlexNet": AlexNet,
    "AlexNet_Tiny": partial(AlexNet, stride=2),
    "VGG11": VGG,
    "VGG11BN": partial(VGG, norm="batchnorm"),
    "VGG11_Tiny": partial(VGG, last_stride=2),
    "ResNet10": partial(ResNet, blocks=RESNET10),
    "ResNet10BN": partial(ResNet, blocks=RESNET10, norm="batchnorm"),
    "ResNet18": ResNet,
    "ResNet18BN": partial(ResNet, norm="batchnorm"),
    "ResNet18_AP": partial(ResNet, pooled=True),
    "ResNet18BN_AP": partial(ResNet, pooled=True, norm="batchnorm"),
    "ResNet18_Tiny": partial(ResNet, stem_stride=2),
    "ResNet18BN_Tiny": partial(ResNet, stem_stride=2, norm="batchnorm"),
    "ConvNet-3": GroupedConvNet,
    "ResNetAP-10": partial(IDCResNet, depth=10, pooled=True),
    "ResNetAP-18": partial(IDCResNet, depth=18, pooled=True),
    "ResNet-10": partial(IDCResNet, depth=10),
    "ResNet-18": partial(IDCResNet, depth=18),
    "ResNet10-BN": partial(IDCResNet, depth=10, norm="batchnorm"),
    "ResNet18-BN": partial(IDCResNet, depth=18, norm="batchnorm"),
    "DenseNet": dense_net,
    "EfficientNet-B0": efficient_net,
}


def known_names() -> list[str]:
    """The published factory names."""
    return [*convnet.names(), *NETWORKS]


def make_network(name: str, *, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network by its factory name, freshly initialised by torch's global generator.

    Args:
        name: "ConvNet" (depth 3, width 128) with, in this order, a depth, a width, an activation
            (AS, AR, AL), a norm (NN, BN, LN, IN, GN) and a pooling (NP, MP, AP), any of them left
            out: "ConvNetD4", "ConvNetD2W32BN"; a name in ``NETWORKS``; or "timm:NAME", a network
            of the package timm.
        image_shape: (C, H, W) of one image.
        classes: number of classes K.

    Raises:
        FastmttError: the name is unknown, the images are too small, or timm is not installed.
    """
    if name.startswith(from_timm.PREFIX):
        return from_timm.make_timm(name.removeprefix(from_timm.PREFIX), image_shape, classes)
    build = NETWORKS.get(name) or convnet.parse(name)
    if build is None:
        near = difflib.get_close_matches(name, known_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else "for example ConvNet, ConvNetD4, ResNet18"
        raise FastmttError(f"network {name!r} is not known; {hint}")
    return build(image_shape, classes)
