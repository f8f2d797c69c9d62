"""The space images are trained in: normalised by constants, or whitened by ZCA.

A distilled set is worthless without its space, so a space is saved with it and gives the same
bits after loading.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fastmtt.errors import FastmttError
from fastmtt.files import one_line, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from kornia.enhance import ZCAWhitening

KIND = "fastmtt space 1"
ZCA_EPS = 0.1
_ROWS = 128  # images whitened in one matrix product


class Space(ABC):
    """An invertible map from pixels in [0,1] to training images."""

    @abstractmethod
    def transform(self, pixels: Tensor) -> Tensor:
        """Bring pixels [n,C,H,W] float32 in [0,1] into the training space."""

    @abstractmethod
    def to_pixels(self, images: Tensor) -> Tensor:
        """Bring training images [n,C,H,W] back to pixels; distilled ones may leave [0,1]."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Say in JSON's terms which space this is; equal spaces give equal descriptions."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Give what `load_space` needs besides the description."""

    def save(self, path: str | Path) -> None:
        """Write the space to a safetensors file, atomically."""
        write_safetensors(Path(path), KIND, self._tensors(), self.describe())


class Normalised(Space):
    """(pixels - mean) / std, one mean and std a channel.

    Args:
        mean: The channels' means.
        std: The channels' standard deviations, positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self._made: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def transform(self, pixels: Tensor) -> Tensor:
        """Normalise [n,C,H,W] float pixels, in their own precision."""
        mean, std = self._columns(pixels)
        return (pixels - mean) / std

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo `transform`."""
        mean, std = self._columns(images)
        return images * std + mean

    def describe(self) -> dict[str, Any]:
        """Give the kind and the constants."""
        return {"kind": "normalised", "mean": list(self.mean), "std": list(self.std)}

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        kind = like.dtype, like.device
        if kind not in self._made:  # once: a GPU would wait for each copy
            with torch.inference_mode(False):
                mean, std = torch.tensor([self.mean, self.std], dtype=kind[0], device=kind[1])
            self._made[kind] = mean[:, None, None], std[:, None, None]
        return self._made[kind]

    def _tensors(self) -> dict[str, Tensor]:
        return {"mean": torch.tensor(self.mean), "std": torch.tensor(self.std)}


def normalised_by(images: Tensor, white: int) -> Normalised:
    """Give the space of images' own channel means and standard deviations, to four decimals.

    Args:
        images: [n,C,H,W] uint8.
        white: The integer that means 1.0.

    Raises:
        FastmttError: A channel is the same everywhere.
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in images.split(128):  # as integers of 8 bytes meanwhile
        for channel, row in enumerate(counts):
            row += part[:, channel].flatten().bincount(minlength=256)
    share = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / white
    mean = share @ values
    std = (share * (values - mean[:, None]) ** 2).sum(1).sqrt()
    if std.min() < 5e-5:
        raise FastmttError(
            f"channel {int(std.argmin())} of all training images is {mean[std.argmin()]:.4f} "
            "everywhere, wanted images that differ"
        )
    return Normalised([round(m, 4) for m in mean.tolist()], [round(s, 4) for s in std.tolist()])


class Whitened(Space):
    """ZCA-whitened over all C·H·W features, as kornia does it with eps 0.1.

    Args:
        zca: A fitted `ZCAWhitening` with its inverse.
        digest: Of the training images it was fitted on.
    """

    def __init__(self, zca: ZCAWhitening, digest: str) -> None:
        self.zca = zca
        self.digest = digest

    def transform(self, pixels: Tensor) -> Tensor:
        """Whiten [n,C,H,W] float32 pixels; an image's bits do not depend on its company."""
        zca = self.zca.to(pixels.device)
        whitened = torch.empty_like(pixels)
        # A matrix product's bits depend on its number of rows: so all have the same.
        for part, out in zip(pixels.split(_ROWS), whitened.split(_ROWS), strict=True):
            padding = (0, 0) * (pixels.ndim - 1) + (0, _ROWS - len(part))
            out.copy_(zca(pad(part, padding))[: len(part)])
        return whitened

    def to_pixels(self, images: Tensor) -> Tensor:
        """Undo `transform`."""
        pixels: Tensor = self.zca.to(images.device).inverse_transform(images)
        return pixels

    def describe(self) -> dict[str, Any]:
        """Give the kind, eps and the digest of the images fitted on."""
        return {"kind": "zca", "eps": self.zca.eps, "images": self.digest}

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.zca.state_dict())


def new_zca() -> ZCAWhitening:
    """Give kornia's whitening with the field's settings, not fitted."""
    # imported here: it takes a moment, and most spaces are normalised
    from kornia.enhance import ZCAWhitening

    return ZCAWhitening(eps=ZCA_EPS, compute_inv=True)


def load_space(path: str | Path) -> Space:
    """Read a space that `Space.save` wrote.

    Raises:
        FastmttError: The file is missing, damaged or holds something else.
    """
    path = Path(path)
    tensors, metadata = read_safetensors(path, KIND)
    try:
        if metadata["kind"] == "normalised":
            return _normalised(metadata["mean"], metadata["std"])
        if metadata["kind"] != "zca" or metadata["eps"] != ZCA_EPS:
            raise ValueError(f"a space of kind {metadata['kind']!r}, eps {metadata.get('eps')}")
        features = tensors["mean_vector"].shape[-1]
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        square = [features, features]
        if shapes != {
            "mean_vector": [1, features],
            "transform_matrix": square,
            "transform_inv": square,
        }:
            raise ValueError(f"matrices of shapes {shapes}")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("matrices that are not finite")
        zca = new_zca()
        zca.load_state_dict(tensors)
        return Whitened(zca, metadata["images"])
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise FastmttError(f"{path} holds no space of ours ({one_line(error)})") from None


def _normalised(mean: list[float], std: list[float]) -> Normalised:
    numbers = all(type(value) in (int, float) for value in [*mean, *std])
    if not numbers or not len(mean) == len(std) > 0 or min(std) <= 0:
        raise ValueError(f"a mean {mean} and std {std}")
    return Normalised(mean, std)
