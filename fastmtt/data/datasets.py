"""Data sets by name: images in their training space, labels, classes."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmtt.data.archives import read_archive
from fastmtt.data.raw import RawImages, Wanted
from fastmtt.data.spaces import Normalised, Space
from fastmtt.data.zca import fit_zca
from fastmtt.errors import FastmttError
from fastmtt.files import one_line

_PART = 4096  # images brought into their space at a time: no second copy of the whole set


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training.

    Attributes:
        name: As the configuration names it.
        train_images: [n,C,H,W] float32 in the training space.
        train_labels: [n] int64.
        test_images: [m,C,H,W] float32 in the training space.
        test_labels: [m] int64.
        classes: The classes' names, by label.
        space: The training space, with its way back to pixels.
        source: Where the images came from; state it beside any accuracy.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    space: Space
    source: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load(
    name: str,
    data_path: str | Path,
    *,
    zca: bool = False,
    progress: bool = True,
    download: bool = False,
) -> DataSet:
    """Load a data set into its training space.

    Args:
        name: One of `known()`.
        data_path: The folder the data set lies in (torchvision's layout), or an .npz archive of
            JPEG images; digits need none.
        zca: Whiten by ZCA fitted on the training images instead of normalising.
        progress: Show what takes a while on stderr.
        download: Fetch what is missing, where the source can be fetched.

    Raises:
        FastmttError: The name is unknown, the data are missing, damaged or another data set's.
    """
    row = _KNOWN.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower(), [known.lower() for known in _KNOWN], 1, 0.4)
        hint = next((f" (nearest: {known})" for known in _KNOWN if [known.lower()] == near), "")
        raise FastmttError(f"no data set is called {name!r}; known are {', '.join(_KNOWN)}{hint}")
    path = Path(data_path).expanduser()
    wanted = Wanted(name, row.classes, row.shape)
    if path.suffix == ".npz" and row.from_archive:
        raw = read_archive(path, wanted, show=progress)
    else:
        raw = row.read(path, download)
    train = _as_pixels(raw.train_images, raw.white)
    space = fit_zca(train, show=progress) if zca else Normalised(row.mean, row.std)
    return DataSet(
        name=name,
        train_images=_enter(space, train),
        train_labels=raw.train_labels,
        test_images=_enter(space, _as_pixels(raw.test_images, raw.white)),
        test_labels=raw.test_labels,
        classes=raw.classes,
        space=space,
        source=raw.source,
    )


def known() -> tuple[str, ...]:
    """Give the names `load` knows."""
    return tuple(_KNOWN)


def _as_pixels(images: Tensor, white: int) -> Tensor:
    return images.float().div_(white)


def _enter(space: Space, pixels: Tensor) -> Tensor:
    """Bring pixels into the space, in place."""
    for part in pixels.split(_PART):
        part.copy_(space.transform(part))
    return pixels


def _digits(path: Path, download: bool) -> RawImages:
    """scikit-learn's handwritten digits (UCI, 1797 images of 8x8), one of four held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # RandomState's streams are frozen for good (NEP 19), so the split is the same everywhere.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = shuffled[digits.target[shuffled] == label]
        held_out[members[: round(len(members) / 4)]] = True
    return RawImages(
        train_images=images[~held_out],
        train_labels=labels[~held_out],
        test_images=images[held_out],
        test_labels=labels[held_out],
        classes=tuple(str(label) for label in range(10)),
        source="scikit-learn's handwritten digits",
        white=16,
    )


def _cifar10(path: Path, download: bool) -> RawImages:
    """CIFAR-10 as torchvision lays it out under `path`/cifar-10-batches-py (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10

    try:
        train, test = (
            CIFAR10(str(path), train=split, download=download) for split in (True, False)
        )
    except (RuntimeError, OSError) as error:
        if download:
            raise FastmttError(
                f"CIFAR-10 could not be downloaded to {path} ({one_line(error)}); try again, or "
                "put torchvision's cifar-10-batches-py or an .npz archive of JPEG images there"
            ) from None
        raise FastmttError(
            f"no whole copy of CIFAR-10 lies under {path / 'cifar-10-batches-py'}; add --download "
            "true to fetch it, or point data_path to its folder or to an .npz archive"
        ) from None
    return RawImages(
        train_images=_channels_first(train.data),
        train_labels=torch.tensor(train.targets),
        test_images=_channels_first(test.data),
        test_labels=torch.tensor(test.targets),
        classes=tuple(train.classes),
        source="torchvision's CIFAR10",
    )


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _no_folder(path: Path, download: bool) -> RawImages:
    raise FastmttError(
        f"Tiny ImageNet is read from an .npz archive of JPEG images, data_path is {path}"
    )


@dataclass(frozen=True)
class _Row:
    """What the field fixes for a data set: classes, image shape, constants, and its reader."""

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    read: Callable[[Path, bool], RawImages]
    from_archive: bool = True


# The constants of the trajectory-matching programs; digits have their own training images'.
_KNOWN = {
    "digits": _Row(10, (1, 8, 8), (0.3055,), (0.3763,), _digits, from_archive=False),
    "CIFAR10": _Row(10, (3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), _cifar10),
    "Tiny": _Row(200, (3, 64, 64), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _no_folder),
}
