"""The synthetic set: images, labels and the learning rate they were learned for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmtt.choices import Choices
from fastmtt.data import DataSet, Space
from fastmtt.decode import described
from fastmtt.errors import FastmttError
from fastmtt.files import read_safetensors, write_safetensors
from fastmtt.parametrisation import PIXELS, Pixels

KIND = "fastmtt synthetic 1"


@dataclass
class Synthetic:
    """A distilled set in its training space.

    Attributes:
        images: [n,C,H,W] float32; those of a stage have their classes in order.
        labels: int64 [K*ipc], or float32 logits [K*ipc,K] (soft labels, as DATM stores them).
        lr: the student's learning rate, a scalar.
        parametrisation: what training images are made of; ``images`` are stored ones.
    """

    images: Tensor
    labels: Tensor
    lr: Tensor
    parametrisation: Pixels = PIXELS

    @property
    def targets(self) -> Tensor:
        """What the loss compares with: int64 [n], or the probabilities [n,K] of the logits."""
        return self.labels.softmax(-1) if self.labels.is_floating_point() else self.labels

    def detached(self) -> Synthetic:
        """A copy that nothing else changes."""
        return self.with_tensors(
            **{name: t.detach().clone().cpu() for name, t in self.tensors().items()}
        )

    def to(self, device: torch.device | str) -> Synthetic:
        """The same set on a device."""
        return self.with_tensors(**{name: t.to(device) for name, t in self.tensors().items()})

    def with_tensors(self, images: Tensor, labels: Tensor, lr: Tensor) -> Synthetic:
        """Other tensors, stored in the same way."""
        return Synthetic(images, labels, lr, self.parametrisation)

    def tensors(self) -> dict[str, Tensor]:
        """Images, labels and learning rate by name."""
        return {"images": self.images, "labels": self.labels, "lr": self.lr}

    def to_pixels(self, space: Space) -> Tensor:
        """The stored images [n,C,H,W] as pictures in [0,1]."""
        return self.images if self.parametrisation.in_pixels else space.to_pixels(self.images)

    def save(self, path: Path, meta: dict[str, Any]) -> None:
        """Write to a safetensors file, atomically, with what is needed to use it again."""
        described = self.parametrisation.describe()
        stored = {} if described == PIXELS.describe() else {"parametrisation": described}
        write_safetensors(path, KIND, self.detached().tensors(), {**meta, **stored})


def load_synthetic(path: Path) -> tuple[Synthetic, dict[str, Any]]:
    """Read what :meth:`Synthetic.save` wrote.

    Raises:
        FastmttError: the file is missing, damaged or holds something else.
    """
    tensors, meta = read_safetensors(path, KIND)
    images, labels, lr = (tensors.get(name) for name in ("images", "labels", "lr"))
    if images is None or labels is None or lr is None:
        raise FastmttError(f"{path} holds {sorted(tensors)}, wanted images, labels and lr")
    complaint = misshapen(images, labels, lr) or unsound(images, labels, lr)
    if complaint:
        raise FastmttError(f"{path} is no distilled set: {complaint}")
    try:
        return Synthetic(images, labels, lr, described(meta.get("parametrisation"))), meta
    except FastmttError as error:
        raise FastmttError(f"{path} is no distilled set of this version's: {error}") from None


def misshapen(images: Tensor, labels: Tensor, lr: Tensor) -> str:
    """Say what keeps three tensors from having a distilled set's shapes; empty if nothing does."""
    soft = labels.is_floating_point()
    rows = len(images) if images.dim() == 4 else 0
    fits = labels.dim() == (2 if soft else 1) and len(labels) == rows and labels.numel() > 0
    if rows and fits and lr.dim() == 0:
        return ""
    return (
        f"images {list(images.shape)}, labels {list(labels.shape)}, lr {list(lr.shape)}; wanted "
        f"[n,C,H,W], {'[n,classes]' if soft else '[n]'}, a scalar"
    )


def unsound(images: Tensor, labels: Tensor, lr: Tensor) -> str:
    """Say what is wrong with the types or values of a distilled set; empty if nothing is."""
    soft = labels.is_floating_point()
    kinds = images.dtype == lr.dtype == torch.float32
    kinds = kinds and labels.dtype == (torch.float32 if soft else torch.int64)
    values = images.isfinite().all() and lr.isfinite() and lr > 0
    if kinds and values and (labels.isfinite().all() if soft else labels.min() >= 0):
        return ""
    return (
        f"images {images.dtype}, labels {labels.dtype} from {labels.min()}, lr {float(lr)}; wanted "
        "finite float32 images, int64 labels from 0 or finite float32 logits, and a positive lr"
    )


def class_rows(dataset: DataSet, ipc: int) -> list[np.ndarray]:
    """Rows of each class's training images, int64.

    Raises:
        FastmttError: a class has fewer than ``ipc``.
    """
    labels = dataset.train_labels.cpu().numpy()
    found = [np.flatnonzero(labels == label) for label in range(len(dataset.classes))]
    for name, rows in zip(dataset.classes, found, strict=True):
        if len(rows) < ipc:
            raise FastmttError(
                f"ipc is {ipc}, but class {name!r} of {dataset.name} has {len(rows)} training "
                "images; lower ipc"
            )
    return found


def real_rows(dataset: DataSet, ipc: int, choices: Choices) -> Tensor:
    """Rows of ``ipc`` training images of each class, class by class, int64 [K*ipc].

    Raises:
        FastmttError: a class has fewer images.
    """
    found = enumerate(class_rows(dataset, ipc))
    return torch.from_numpy(np.concatenate([choices.pick(*one, ipc) for one in found]))


def start(
    dataset: DataSet,
    ipc: int,
    pix_init: str,
    lr: float,
    choices: Choices,
    parametrisation: Pixels = PIXELS,
) -> Synthetic:
    """The set before the first iteration (MTT, section "pix_init").

    Args:
        dataset: the real data.
        ipc: images a class.
        pix_init: "real" for random training images; otherwise N(0,1), which
            "samples_predicted_correctly" has experts replace.
        lr: the initial learning rate.
        choices: where randomness comes from.
        parametrisation: what training images will be made of; a stored one that starts as real
            is put together from as many as it has cells.

    Raises:
        FastmttError: a class has too few images to start from.
    """
    count, real = len(dataset.classes) * ipc, ipc * parametrisation.cells
    # drawn in either case: the published programs draw it before they look at pix_init
    images = choices.noise(count, *parametrisation.stored_shape(dataset.image_shape))
    if pix_init == "samples_predicted_correctly":
        class_rows(dataset, real)  # the images come with the experts
    elif pix_init == "noise":
        images = parametrisation.noise(images)
    else:
        images = assembled(dataset, real_rows(dataset, real, choices), parametrisation)
    labels = torch.arange(len(dataset.classes)).repeat_interleave(ipc)
    device, dtype = dataset.train_images.device, dataset.train_images.dtype
    rate = torch.tensor(lr, device=device, dtype=dtype)
    return Synthetic(images.to(device, dtype), labels.to(device), rate, parametrisation)


def assembled(dataset: DataSet, rows: Tensor, parametrisation: Pixels) -> Tensor:
    """Stored images [K*ipc,...] of training images' rows [K*ipc*cells], class by class."""
    cells, classes = parametrisation.cells, len(dataset.classes)
    # of each class, the first ipc rows are the first cell's
    by_cell = rows.view(classes, cells, -1).transpose(0, 1).flatten()
    return parametrisation.assemble(dataset.train_images[by_cell].clone())
