"""The field's ConvNet: blocks of conv3x3, norm, activation and pooling."""

from __future__ import annotations

import re
from functools import partial
from typing import Literal, cast

from torch import Tensor, nn

from fastmtt.errors import FastmttError
from fastmtt.student.zoo.layers import Norm, border, make_norm

Activation = Literal["relu", "leakyrelu", "sigmoid"]
Pooling = Literal["avgpooling", "maxpooling", "none"]

DEPTH, WIDTH = 3, 128
ACTIVATIONS: dict[str, Activation] = {"AS": "sigmoid", "AR": "relu", "AL": "leakyrelu"}
NORMS: dict[str, Norm] = {
    "NN": "none",
    "BN": "batchnorm",
    "LN": "layernorm",
    "IN": "instancenorm",
    "GN": "groupnorm",
}
POOLINGS: dict[str, Pooling] = {"NP": "none", "MP": "maxpooling", "AP": "avgpooling"}
_NAME = re.compile(
    r"ConvNet(?:D([1-9]))?(?:W([1-9]\d*))?"
    + "".join(f"({'|'.join(kinds)})?" for kinds in (ACTIVATIONS, NORMS, POOLINGS))
)


class ConvNet(nn.Module):
    """depth x (conv3x3, norm, activation, pooling 2x2), then a linear classifier.

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
        activation: Activation = "relu",
        norm: Norm = "instancenorm",
        pooling: Pooling = "avgpooling",
    ) -> None:
        """Build for images (C, H, W).

        Raises:
            FastmttError: the images vanish before the last block, or the norm cannot divide the
                width.
        """
        super().__init__()
        channels, height, column = image_shape
        extra = border(image_shape)
        height, column = height + 2 * extra, column + 2 * extra
        halvings = 0 if pooling == "none" else depth
        if min(height, column) >> halvings == 0:
            raise FastmttError(
                f"a ConvNet of depth {depth} halves its images {depth} times; {height}x{column} "
                f"images allow at most depth {min(height, column).bit_length() - 1}"
            )
        layers: list[nn.Module] = []
        for block in range(depth):
            inputs, padding = (width, 1) if block else (channels, 1 + extra)
            layers += [
                nn.Conv2d(inputs, width, 3, padding=padding),
                *make_norm(norm, (width, height, column)),
                _activation(activation),
                *_pooling(pooling),
            ]
            if pooling != "none":
                height, column = height // 2, column // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * column, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B,C,H,W] to logits [B,K]."""
        return cast(Tensor, self.classifier(self.features(x).flatten(1)))


def parse(name: str) -> partial[ConvNet] | None:
    """The ConvNet of a factory name such as ConvNetD4, ConvNetD2W32 or ConvNetGN; None: no such."""
    if name == "ConvNetKIP":
        return partial(ConvNet, width=1024, norm="none")
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    depth, width, activation, norm, pooling = match.groups()
    return partial(
        ConvNet,
        depth=int(depth or DEPTH),
        width=int(width or WIDTH),
        activation=ACTIVATIONS[activation or "AR"],
        norm=NORMS[norm or "IN"],
        pooling=POOLINGS[pooling or "AP"],
    )


def names() -> list[str]:
    """The published factory names."""
    kinds = [*ACTIVATIONS, *NORMS, *POOLINGS]
    depths = [f"D{depth}" for depth in range(1, 9)]
    widths = [f"W{width}" for width in (32, 64, 128, 256, 512, 1024)]
    return [f"ConvNet{part}" for part in ("", *depths, *widths, "KIP", *kinds, "D4BN")]


def _activation(kind: Activation) -> nn.Module:
    match kind:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leakyrelu":
            return nn.LeakyReLU(0.01)
        case "sigmoid":
            return nn.Sigmoid()


def _pooling(kind: Pooling) -> list[nn.Module]:
    match kind:
        case "avgpooling":
            return [nn.AvgPool2d(2)]
        case "maxpooling":
            return [nn.MaxPool2d(2)]
        case "none":
            return []
