"""What the networks' layers share: norms by name, MNIST's border, sizes of what comes out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from fastmtt.errors import FastmttError

Norm = Literal["instancenorm", "batchnorm", "groupnorm", "layernorm", "none"]
GROUPS = 4  # of "groupnorm"


def make_norm(kind: Norm, shape: tuple[int, ...]) -> list[nn.Module]:
    """The norm of planes of ``shape``, (C, H, W) or, but for layernorm, (C,); none for "none".

    Raises:
        FastmttError: groupnorm cannot divide the channels.
    """
    channels = shape[0]
    if kind == "groupnorm" and channels % GROUPS:
        raise FastmttError(
            f"group norm has {GROUPS} groups, and {channels} channels cannot be divided so; take a "
            f"width that is a multiple of {GROUPS}"
        )
    match kind:
        case "instancenorm":  # nn.InstanceNorm2d has no weights by default; this is the field's
            return [nn.GroupNorm(channels, channels)]
        case "batchnorm":
            return [nn.BatchNorm2d(channels)]
        case "groupnorm":
            return [nn.GroupNorm(GROUPS, channels)]
        case "layernorm":
            return [nn.LayerNorm(shape)]
        case "none":
            return []


def border(image_shape: tuple[int, int, int]) -> int:
    """Pixels the published networks pad beyond a layer's own: MNIST's 28x28 becomes 32x32."""
    return 2 if image_shape == (1, 28, 28) else 0


def grid_after(
    layers: Iterable[nn.Module], image_shape: tuple[int, int, int], name: str
) -> tuple[int, int]:
    """Height and width of what convolutions and poolings in a chain make of an image.

    Raises:
        FastmttError: nothing is left of it.
    """
    grid = image_shape[1:]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
            grid = _after(layer, grid[0], 0), _after(layer, grid[1], 1)
        if min(grid) < 1:
            raise FastmttError(
                f"of {image_shape[1]}x{image_shape[2]} images nothing is left before the end of a "
                f"{name}; take larger ones or another network"
            )
    return grid


def _after(layer: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, size: int, axis: int) -> int:
    kernel, stride, padding = (
        part if isinstance(part, int) else int(part[axis])
        for part in (layer.kernel_size, layer.stride, layer.padding)
    )
    return (size + 2 * padding - kernel) // stride + 1
