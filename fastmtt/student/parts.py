"""A batch in parts that fit the caches or the GPU, and their gradients put together again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of one large plane of a part. Every part transforms the filters anew and shares its images out
# among the threads: a part that holds the standard batch takes a tenth less time than one that fits
# an ordinary last-level cache, though its planes go to memory and back.
_PART_BYTES = 2**26
# On a GPU a part fills all multiprocessors many times over; memory for a few such planes must do.
_GPU_PART_BYTES = 2**29


class Part(NamedTuple):
    """Images first .. last of a batch: whose mean's gradients are weighed to make the batch's."""

    number: int
    first: int
    last: int
    batch: int

    @property
    def weight(self) -> float:
        """The part's share of the batch."""
        return (self.last - self.first) / self.batch

    def of(self, t: Tensor) -> Tensor:
        """The part of images or labels [S,B,...]."""
        return t[:, self.first : self.last]

    def scaled(self, g: Tensor | None) -> Tensor | None:
        """A gradient of the part's mean as one of the batch's, in place."""
        return g if g is None or self.weight == 1 else g.mul_(self.weight)

    def add(self, g: Tensor, total: Tensor) -> None:
        """Add this part's gradient to the batch's, which holds the first part's as it is."""
        if g is total:
            self.scaled(g)
        else:
            total.add_(g, alpha=self.weight)


def parts_of(batch: int, plane_bytes: int, device: str = "cpu") -> list[Part]:
    """A batch in parts of equal size, the last one less, by the bytes of an image's largest plane.

    They do not depend on S: what one student computes must not depend on its company.
    """
    limit = _PART_BYTES if device == "cpu" else _GPU_PART_BYTES
    count = -(-batch // max(1, limit // plane_bytes))
    size = -(-batch // count)
    firsts = range(0, batch, size)
    return [Part(n, first, min(first + size, batch), batch) for n, first in enumerate(firsts)]


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """The parts' cotangents [S,b,...] as the batch's; None where there are none."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    return found[0] if len(found) == 1 else torch.cat(found, 1)
