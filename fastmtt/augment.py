"""DSA, differentiable siamese augmentation, with its draws as data.

``draw`` makes parameters, ``apply`` uses them, ``pull_back`` carries cotangents through: nothing of
the augmented images needs to be kept. The maps themselves are ops (:mod:`.ops.reference_dsa`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmtt import ops
from fastmtt.errors import FastmttError
from fastmtt.ops import reference
from fastmtt.ops.reference_dsa import KINDS

FULL = "color_crop_cutout_flip_scale_rotate"


class Parameters(NamedTuple):
    """One batch's augmentation for S students: L operations one after another.

    Attributes:
        kind: int64 [L,S], index into ``KINDS``.
        values: float32 [L,S,B,3], see ``ops.reference_dsa``.
    """

    kind: Tensor
    values: Tensor


Uniform = Callable[[int], np.ndarray]  # n of [0,1), float32
Integers = Callable[[int, int, int], np.ndarray]  # low, high, n: int64


class DSA:
    """Zhao & Bilen's augmentation with the published constants as defaults.

    Args:
        strategy: operations joined by ``_``; "none" for the identity.
        mode: "S" draws one operation a batch, "M" applies all in order.
        prob_flip: chance of a mirror image.
        ratio_scale: largest factor of a zoom in or out.
        ratio_rotate: largest angle in degrees.
        ratio_crop_pad: largest shift over the image's size.
        ratio_cutout: side of the square set to zero over the image's size.
        brightness: width of the interval round 0 of added brightness.
        saturation: largest saturation factor.
        contrast: smallest contrast factor; the largest is 1 more.

    Raises:
        FastmttError: an operation or the mode is unknown.
    """

    def __init__(
        self,
        strategy: str = FULL,
        *,
        mode: str = "S",
        prob_flip: float = 0.5,
        ratio_scale: float = 1.2,
        ratio_rotate: float = 15.0,
        ratio_crop_pad: float = 0.125,
        ratio_cutout: float = 0.5,
        brightness: float = 1.0,
        saturation: float = 2.0,
        contrast: float = 0.5,
    ) -> None:
        names = [] if strategy.lower() == "none" else strategy.split("_")
        for name in names:
            if name not in KINDS[1:]:
                raise FastmttError(
                    f"augmentation {name!r} in strategy {strategy!r} is not known; "
                    f"known are {', '.join(KINDS[1:])}, joined by '_', or 'none'"
                )
        if mode not in ("S", "M"):
            raise FastmttError(f"augmentation mode must be 'S' or 'M', got {mode!r}")
        self.names, self.mode = names, mode
        self.prob_flip, self.ratio_scale, self.ratio_rotate = prob_flip, ratio_scale, ratio_rotate
        self.ratio_crop_pad, self.ratio_cutout = ratio_crop_pad, ratio_cutout
        self.brightness, self.saturation, self.contrast = brightness, saturation, contrast

    def draw(self, rng: np.random.Generator, batch: int, image_shape: Sequence[int]) -> Parameters:
        """Parameters of one student's batch, by key (see :mod:`.draws`).

        Args:
            rng: the key's generator.
            batch: number of images B.
            image_shape: (C, H, W).
        """

        def uniform(n: int) -> np.ndarray:
            return rng.random(n, dtype=np.float32)

        return self._draw(uniform, rng.integers, batch, image_shape)

    def draw_published(
        self, generator: torch.Generator, batch: int, image_shape: Sequence[int]
    ) -> Parameters:
        """The same by torch's generator, in the order of the published programs' draws."""

        def uniform(n: int) -> np.ndarray:
            return torch.rand(n, generator=generator).numpy()

        def integers(low: int, high: int, n: int) -> np.ndarray:
            return torch.randint(low, high, (n,), generator=generator).numpy()

        return self._draw(uniform, integers, batch, image_shape)

    @staticmethod
    def stack(students: Sequence[Parameters]) -> Parameters:
        """Parameters of S students from theirs one by one."""
        return Parameters(*(torch.cat(parts, dim=1) for parts in zip(*students, strict=True)))

    def apply(self, x: Tensor, parameters: Parameters) -> Tensor:
        """Augment images [S,B,C,H,W]; autograd can follow where they require grad."""
        # a compiled op leaves autograd no graph
        dsa = reference.dsa if x.requires_grad and torch.is_grad_enabled() else ops.dsa
        for kind, values in zip(*parameters, strict=True):
            x = dsa(x, kind, values.to(x.device), self.ratio_cutout)
        return x

    def pull_back(self, g: Tensor, parameters: Parameters) -> Tensor:
        """Cotangent of the images from that of the augmented images."""
        for kind, values in reversed(list(zip(*parameters, strict=True))):
            g = ops.dsa_transpose(g, kind, values.to(g.device), self.ratio_cutout)
        return g

    def _draw(
        self, uniform: Uniform, integers: Integers, batch: int, image_shape: Sequence[int]
    ) -> Parameters:
        names = self.names
        if names and self.mode == "S":
            names = [names[integers(0, len(names), 1)[0]]]
        return self._parameters(names, uniform, integers, batch, image_shape)

    def _parameters(
        self,
        names: Sequence[str],
        uniform: Uniform,
        integers: Integers,
        batch: int,
        image_shape: Sequence[int],
    ) -> Parameters:
        """Draw the values of these operations, one after another."""
        kind = np.array([KINDS.index(name) for name in names], dtype=np.int64)
        # in numpy, whose calls cost less: experts draw thousands of times an epoch
        values = np.zeros((len(names), 1, batch, 3), dtype=np.float32)
        for row, name in zip(values, names, strict=True):
            for c, column in enumerate(self._values(name, uniform, integers, batch, image_shape)):
                row[0, :, c] = column
        return Parameters(torch.from_numpy(kind)[:, None], torch.from_numpy(values))

    def _values(
        self,
        name: str,
        uniform: Uniform,
        integers: Integers,
        batch: int,
        image_shape: Sequence[int],
    ) -> list[np.ndarray]:
        """An operation's values in the published order of draws, one array [B] a column."""
        _, height, width = image_shape
        match name:
            case "color":
                return [
                    (uniform(batch) - 0.5) * self.brightness,
                    uniform(batch) * self.saturation,
                    uniform(batch) + self.contrast,
                ]
            case "crop":
                shifts = [int(size * self.ratio_crop_pad + 0.5) for size in (height, width)]
                return [integers(-shift, shift + 1, batch) for shift in shifts]
            case "cutout":
                holes = [int(size * self.ratio_cutout + 0.5) for size in (height, width)]
                return [
                    integers(0, size + (1 - hole % 2), batch)
                    for size, hole in zip((height, width), holes, strict=True)
                ]
            case "flip":
                return [uniform(batch) < self.prob_flip]
            case "scale":
                low, high = 1 / self.ratio_scale, self.ratio_scale
                return [uniform(batch) * (high - low) + low for _ in range(2)]
        return [(uniform(batch) - 0.5) * 2 * self.ratio_rotate * np.pi / 180]
