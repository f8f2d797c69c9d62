"""A slice of CIFAR-10 where its archive is kept beside the repository, else random images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.machine import ROOT
from fastmtt.data import DataSet
from fastmtt.data.spaces import Normalised

ARCHIVE = ROOT.parent / "shared" / "data" / "cifar10_jpeg.npz"
SHAPE, CLASSES = (3, 32, 32), 10
SPACE = Normalised((0.4913, 0.4821, 0.4465), (0.2452, 0.2428, 0.2606))


def load_slice(train: int, test: int) -> DataSet:
    """So many training and test images, evenly spaced through the set; ``source`` says which."""
    if ARCHIVE.is_file():
        with np.load(ARCHIVE, allow_pickle=False) as archive:
            splits = _decoded(archive, "train", train), _decoded(archive, "test", test)
        source = f"CIFAR-10 from {ARCHIVE.name}"
    else:
        splits = _random(train, 0), _random(test, 1)
        source = "random images (no CIFAR-10 archive here)"
    (images, labels), (test_images, test_labels) = splits
    return DataSet(
        name="CIFAR10",
        train_images=SPACE.transform(images),
        train_labels=labels,
        test_images=SPACE.transform(test_images),
        test_labels=test_labels,
        held_out_images=test_images[:0],
        held_out_labels=test_labels[:0],
        classes=tuple(map(str, range(CLASSES))),
        space=SPACE,
        source=source,
    )


def _decoded(archive: Any, split: str, count: int) -> tuple[Tensor, Tensor]:
    jpeg, offsets, labels = (archive[f"{split}_{part}"] for part in ("jpeg", "offsets", "labels"))
    rows = np.linspace(0, len(labels) - 1, count).astype(int)
    files = [io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()) for i in rows]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return images.contiguous(), torch.from_numpy(labels[rows].astype(np.int64))


def _random(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=generator), torch.arange(count) % CLASSES
