"""Networks of the package timm, `timm:NAME`, with fresh weights."""

from __future__ import annotations

import difflib

import torch
from torch import nn

from fastmtt.errors import FastmttError
from fastmtt.files import one_line

PREFIX = "timm:"


def make_timm(name: str, image_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build timm's network ``name`` for images (C, H, W) and K classes.

    Raises:
        FastmttError: timm is not installed, does not know the name, or the network cannot take
            such images.
    """
    try:
        import timm
    except ImportError:
        raise FastmttError(
            f"network '{PREFIX}{name}' is one of the package timm, which is not installed; "
            "pip install 'fastmtt[timm]'"
        ) from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else "timm.list_models() names them"
        raise FastmttError(f"network '{PREFIX}{name}' is not known; {hint}")
    options = (
        {"img_size": image_shape[1:]} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    )
    try:
        network: nn.Module = timm.create_model(
            name, in_chans=image_shape[0], num_classes=classes, **options
        )
        like = next(network.parameters())
        with torch.no_grad():
            network.eval()(like.new_zeros(1, *image_shape))
    except Exception as error:  # timm's networks raise what they like
        raise FastmttError(
            f"network '{PREFIX}{name}' cannot take {list(image_shape)} images: {one_line(error)}; "
            "take larger ones or another network"
        ) from None
    return network.train()
