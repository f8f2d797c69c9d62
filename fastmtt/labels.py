"""Labels that experts give: DATM's start images and soft labels, TESLA's teacher.

DATM: Guo et al. 2024, arXiv 2310.05773. TESLA: Cui et al. 2023, arXiv 2211.10586.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastmtt.choices import Choices
from fastmtt.data import DataSet
from fastmtt.errors import FastmttError
from fastmtt.experts.published import Experts
from fastmtt.parametrisation import PIXELS, Pixels
from fastmtt.student import Student
from fastmtt.synthetic import class_rows

_BATCH = 256


@dataclass(frozen=True)
class Labeller:
    """Experts that are asked what an image shows.

    Attributes:
        student: computes logits.
        store: gives the experts' weights.
        experts: their numbers, in the order they are asked.
        snapshot: which of each one's snapshots; negative from the end.
    """

    student: Student
    store: Experts
    experts: Sequence[int]
    snapshot: int = -1

    def logits(self, expert: int, images: Tensor) -> Tensor:
        """An expert's logits [n,K] of images [n,C,H,W], without augmentation."""
        last = self.store.length(expert)
        number = self.snapshot if self.snapshot >= 0 else last + self.snapshot
        return logits(self.student, self.store.segment(expert, number, number)[0], images)

    def first(self) -> Labeller:
        """The first expert alone, as it ended."""
        return replace(self, experts=self.experts[:1], snapshot=-1)


def correct_rows(dataset: DataSet, ipc: int, choices: Choices, labeller: Labeller) -> Tensor:
    """Rows of ``ipc`` training images of each class that an expert predicts correctly.

    The first expert judges; where a class has too few images it gets right, the next one adds its
    own, and so on.

    Args:
        dataset: the real data.
        ipc: images a class.
        choices: the order in which a class's images are looked at.
        labeller: the experts.

    Returns:
        int64 [K*ipc], class by class.

    Raises:
        FastmttError: all experts together get too few images of a class right.
    """
    picked = []
    for label, rows in enumerate(class_rows(dataset, ipc)):
        order = torch.from_numpy(choices.pick(label, rows, len(rows)))
        found: dict[int, None] = {}
        for expert in labeller.experts:
            for row in _correct(dataset, labeller, expert, order, label):
                found.setdefault(row)
                if len(found) == ipc:
                    break
            if len(found) == ipc:
                break
        if len(found) < ipc:
            raise FastmttError(
                f"the {len(labeller.experts)} experts get {len(found)} images of class "
                f"{dataset.classes[label]!r} right, wanted ipc {ipc}; train them longer, lower ipc "
                "or set pix_init to real"
            )
        picked += list(found)
    return torch.tensor(picked)


def soft_labels(
    images: Tensor, labels: Tensor, labeller: Labeller, parametrisation: Pixels = PIXELS
) -> Tensor:
    """Logits of each image, averaged over the experts that classify it correctly.

    Of an image that none gets right the published program makes NaN; here all experts count then.

    Args:
        images: stored images [n,C,H,W]; of what they show the logits' mean counts.
        labels: int64 [n], what is correct.
        labeller: the experts.
        parametrisation: the images'.

    Returns:
        float32 [n,K].
    """
    right = torch.zeros(len(images), 1, device=images.device, dtype=images.dtype)
    of_right = of_all = torch.zeros((), device=images.device, dtype=images.dtype)
    views = parametrisation.views(images)
    for expert in labeller.experts:
        given = of_views(labeller.logits(expert, views), parametrisation)
        correct = (given.argmax(-1) == labels)[:, None].to(given.dtype)
        right, of_right, of_all = right + correct, of_right + correct * given, of_all + given
    return torch.where(right > 0, of_right / right.clamp(min=1), of_all / len(labeller.experts))


def of_views(logits: Tensor, parametrisation: Pixels) -> Tensor:
    """Logits [n,K] of stored images: the mean over what each shows, given [cells*n,K]."""
    return logits.unflatten(0, (parametrisation.cells, -1)).mean(0)


def logits(student: Student, theta: Tensor, images: Tensor) -> Tensor:
    """Logits [n,K] of images [n,C,H,W] by flat weights [P], without augmentation."""
    packed = student.pack(theta[None].to(images))
    parts = [student.logits(packed, part[None])[0] for part in images.split(_BATCH)]
    return torch.cat(parts)


def _correct(
    dataset: DataSet, labeller: Labeller, expert: int, rows: Tensor, label: int
) -> Iterator[int]:
    """Those of a class's rows, in order, that the expert classifies correctly."""
    for part in rows.split(_BATCH):
        images = dataset.train_images[part.to(dataset.train_images.device)]
        predicted = labeller.logits(expert, images).argmax(-1).cpu()
        yield from part[predicted == label].tolist()
