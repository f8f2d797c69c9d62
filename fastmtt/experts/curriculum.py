"""Which training images an expert sees in which epoch: PAD's curriculum, and fixed pruning.

Both go by an order of each class's images from easy to hard (:mod:`fastmtt.experts.order`), class
by class and by the class's own size; PAD's program (arXiv 2408.03360) takes 5000 for it everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.experts.order import digest


@dataclass(frozen=True, eq=False)
class Curriculum:
    """Hard images are added to the easy ones, then easy ones are left out (PAD's `buffer_CL`).

    Epochs count from 0; shares of a class's n images are rounded down.

    Attributes:
        order: each class's rows, easy images first.
        init_ratio: share of each class in epoch 0, the easiest.
        add_end_epoch: epoch from which all images are seen; the share grows linearly to it.
        rm_epoch_first: behind this epoch, rm_easy_ratio_first of the easiest are left out.
        rm_epoch_second: behind this one, rm_easy_ratio_second of them.
        rm_easy_ratio_first: a share of each class.
        rm_easy_ratio_second: a share of each class.

    Raises:
        FastmttError: epoch 0 has no image.
    """

    order: Sequence[Tensor]
    init_ratio: float
    add_end_epoch: int
    rm_epoch_first: int
    rm_epoch_second: int
    rm_easy_ratio_first: float
    rm_easy_ratio_second: float

    def __post_init__(self) -> None:
        _check(self, f"init_ratio {self.init_ratio}; raise it")

    def rows(self, epoch: int) -> Tensor:
        """What an epoch sees: int64 [m] rows of the data set, ascending."""
        return _join(row[self._part(epoch, len(row))] for row in self.order)

    def describe(self) -> dict[str, Any]:
        """The keys, with the order's digest in place of its rows."""
        return _describe(self)

    def beyond(self, epochs: int) -> list[str]:
        """The keys of what an expert of ``epochs`` epochs never comes to; empty: to all of it."""
        begins = {
            "add_end_epoch": self.add_end_epoch,
            "rm_epoch_first": max(self.add_end_epoch, self.rm_epoch_first) + 1,
            "rm_epoch_second": max(self.add_end_epoch, self.rm_epoch_second) + 1,
        }
        last, settled = epochs - 1, max(begins.values())
        if all(self._part(last, len(row)) == self._part(settled, len(row)) for row in self.order):
            return []
        return [key for key, epoch in begins.items() if epoch > last]

    def _part(self, epoch: int, n: int) -> slice:
        """Which of a class's n images, by their place in the order."""
        if epoch < self.add_end_epoch:
            share = self.init_ratio + (1 - self.init_ratio) * epoch / self.add_end_epoch
            return slice(0, int(share * n))
        if epoch <= max(self.add_end_epoch, self.rm_epoch_first):
            return slice(0, n)
        first = epoch <= self.rm_epoch_second
        ratio = self.rm_easy_ratio_first if first else self.rm_easy_ratio_second
        return slice(int(ratio * n), n)


@dataclass(frozen=True, eq=False)
class Pruning:
    """A share of each class is left out of all epochs (PAD's `buffer_RM`).

    Attributes:
        order: each class's rows, easy images first.
        ratio: the share.
        remove_strategy: which ones, the hard or the easy.

    Raises:
        FastmttError: no image is left.
    """

    order: Sequence[Tensor]
    ratio: float
    remove_strategy: Literal["hard", "easy"]

    def __post_init__(self) -> None:
        _check(self, f"ratio {self.ratio}; lower it")

    def rows(self, epoch: int) -> Tensor:
        """What every epoch sees: int64 [m] rows of the data set, ascending."""
        return _join(row[self._part(len(row))] for row in self.order)

    def describe(self) -> dict[str, Any]:
        """The keys, with the order's digest in place of its rows."""
        return _describe(self)

    def _part(self, n: int) -> slice:
        # By way of all images, as published: the rounding differs from that of a share of n.
        classes = len(self.order)
        if self.remove_strategy == "hard":
            return slice(0, int(n * classes * (1 - self.ratio) / classes))
        return slice(int(n * classes * self.ratio / classes), n)


def _join(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(parts)).sort().values  # sorted: all images are seen as without a schedule


def _check(schedule: Curriculum | Pruning, choice: str) -> None:
    if not len(schedule.rows(0)):
        largest = max(len(row) for row in schedule.order)
        raise FastmttError(f"of classes of at most {largest} images none is left by {choice}")


def _describe(schedule: Curriculum | Pruning) -> dict[str, Any]:
    keys = {field.name: getattr(schedule, field.name) for field in fields(schedule)}
    return {**keys, "order": digest(schedule.order)}
