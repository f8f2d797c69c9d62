"""Randomly pruned experts: convolutions of which a share of the weights stays zero (PDD's buffers).

Chen et al., ICLR 2024, arXiv 2310.06982; unstructured, each tensor of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fastmtt import draws
from fastmtt.student import Student
from fastmtt.training import Network


class Pruned:
    """A network of whose weights some do not move: what training needs of one.

    Args:
        network: what is pruned.
        masks: boolean [S,P], public order; False where a weight stays as it is.
    """

    def __init__(self, network: Network, masks: Tensor) -> None:
        """Take the masks into the network's own order."""
        self.network, self.masks = network, network.pack(masks)

    def pack(self, flat: Tensor) -> Tensor:
        """See :class:`fastmtt.training.Network`."""
        return self.network.pack(flat)

    def unpack(self, packed: Tensor) -> Tensor:
        """See :class:`fastmtt.training.Network`."""
        return self.network.unpack(packed)

    def gradient(
        self,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`fastmtt.training.Network`: zero where a weight stays."""
        loss, gradient = self.network.gradient(theta, x, y, into=into)
        return loss, gradient.mul_(self.masks)

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """See :class:`fastmtt.training.Network`."""
        return self.network.logits(theta, x)


def random_masks(student: Student, ratio: float, seed: int, members: Sequence[int]) -> Tensor:
    """Which weights of each member are kept: boolean [S,P], public order.

    Args:
        student: gives the tensors; those of four axes are convolutions.
        ratio: share of each convolution's weights, rounded to whole ones, that is pruned.
        seed: the run's seed.
        members: numbers, the key of the draws.
    """
    kept = torch.ones(len(members), student.size, dtype=torch.bool)
    for row, member in zip(kept, members, strict=True):
        rng = draws.stream(seed, "pruned weights", member)
        offset = 0
        for shape in student.shapes:
            size = prod(shape)
            if len(shape) == 4:
                gone = rng.permutation(size)[: round(ratio * size)]
                row[offset + torch.from_numpy(gone)] = False
            offset += size
    return kept
