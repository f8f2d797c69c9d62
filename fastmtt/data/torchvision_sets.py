"""The sets torchvision reads and downloads: MNIST, FashionMNIST, SVHN, CIFAR-10 and CIFAR-100."""

import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmtt.data.raw import RawImages, Request
from fastmtt.errors import FastmttError
from fastmtt.files import one_line

# What torchvision raises, between its readers, on files missing, cut short or overwritten.
_DAMAGE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, KeyError, AssertionError),
    *(IndexError, struct.error, zlib.error, pickle.UnpicklingError),
)


def torchvision_reader(name: str, called: str, lies_in: str) -> Callable[[Request], RawImages]:
    """Give the reader of one of torchvision's sets.

    Args:
        name: The class in torchvision.datasets.
        called: The set's name in sentences.
        lies_in: The folder under data_path, or the files, that torchvision wants.
    """

    def read(request: Request) -> RawImages:
        from torchvision import datasets

        made_by = getattr(datasets, name)
        path = request.path
        try:
            train, test = (
                made_by(str(path), **split, download=request.download) for split in _SPLITS[name]
            )
            return RawImages(
                train_images=_channels_first(train.data),
                train_labels=_labels(train),
                test_images=_channels_first(test.data),
                test_labels=_labels(test),
                classes=tuple(getattr(train, "classes", map(str, range(10)))),
                source=f"torchvision's {name}",
            )
        except _DAMAGE as error:
            raise _refusal(called, path, lies_in, request.download, error) from None

    return read


_BY_FLAG: list[dict[str, Any]] = [{"train": True}, {"train": False}]
_SPLITS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"), _BY_FLAG),
    "SVHN": [{"split": "train"}, {"split": "test"}],
}


def _refusal(
    called: str, path: Path, lies_in: str, download: bool, error: Exception
) -> FastmttError:
    if download:
        return FastmttError(
            f"{called} could not be downloaded to {path} ({one_line(error)}); try again, or put "
            f"torchvision's {lies_in} or an .npz archive of JPEG images there"
        )
    return FastmttError(
        f"no whole copy of {called} lies under {path / lies_in}; add --download true to fetch it, "
        "or point data_path to its folder or to an .npz archive"
    )


def _channels_first(images: np.ndarray | Tensor) -> Tensor:
    """[n,H,W], [n,H,W,3] or [n,3,H,W] uint8 to [n,C,H,W]."""
    images = torch.as_tensor(images)
    if images.ndim == 3:
        return images[:, None]
    return (images if images.shape[1] == 3 else images.permute(0, 3, 1, 2)).contiguous()


def _labels(dataset: Any) -> Tensor:
    labels = dataset.labels if hasattr(dataset, "labels") else dataset.targets
    return torch.as_tensor(labels, dtype=torch.int64)
