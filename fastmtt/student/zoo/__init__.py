"""Networks of the field by the names people know."""

from __future__ import annotations

import difflib

from torch import nn

from fastmtt.errors import FastmttError
from fastmtt.student.zoo import convnet
from fastmtt.student.zoo.convnet import ConvNet

__all__ = ["ConvNet", "make_network"]


def make_network(name: str, *, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network by its factory name, freshly initialised by torch's global generator.

    Args:
        name: "ConvNet" (depth 3, width 128) or "ConvNet" with a depth and a width, such as
            "ConvNetD4", "ConvNetW64", "ConvNetD2W32".
        image_shape: (C, H, W) of one image.
        classes: number of classes K.

    Raises:
        FastmttError: the name is unknown, or the images are too small for the depth.
    """
    size = convnet.parse(name)
    if size is None:
        known = ["ConvNet", *(f"ConvNetD{d}" for d in range(1, 9))]
        known += [f"ConvNetW{w}" for w in (32, 64, 128, 256, 512, 1024)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "for example ConvNet, ConvNetD4, ConvNetW64"
        raise FastmttError(f"network {name!r} is not known; {hint}")
    depth, width = size
    return ConvNet(image_shape, classes, depth=depth, width=width)
