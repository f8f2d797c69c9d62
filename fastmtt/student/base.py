"""What the sweeps need of a student: two verbs and the order of its parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable, Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmtt.student.room import Tape

Needs = Collection[str]
EVERYTHING = frozenset({"theta", "x", "y"})


class TapeOption(NamedTuple):
    """What a step may keep between the sweeps: its key, and per image its size and work saved."""

    key: Hashable
    bytes: int
    flops: float


class Student(ABC):
    """A network as two verbs over S weight vectors at once.

    Outside, weights are flat vectors in ``named_parameters()`` order with torch's own tensor
    layouts; :meth:`pack` brings them into the order the student computes in, once a segment.

    Attributes:
        names: parameter names in flat order.
        shapes: their shapes in torch's layout.
        size: P, the number of parameters.
        classes: K where labels are classes or probabilities of a network we know, else None.
    """

    classes: int | None = None

    def __init__(self, module: nn.Module) -> None:
        """Read names and shapes off ``module``; its weights are never used.

        Raises:
            ValueError: there are none.
        """
        parameters = dict(module.named_parameters())
        if not parameters:
            raise ValueError("the student has no parameters, so there is nothing to train")
        self.names = tuple(parameters)
        self.shapes = tuple(tuple(p.shape) for p in parameters.values())
        self.size = sum(prod(shape) for shape in self.shapes)

    def pack(self, flat: Tensor) -> Tensor:
        """Flat vectors or masks [..., P] from the public into the student's own order."""
        return flat

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of :meth:`pack`."""
        return packed

    @abstractmethod
    def gradient(
        self,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape | None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss [S] and its gradient [S,P].

        Args:
            theta: packed weights [S,P].
            x: images [S,B,C,H,W] (or whatever the module takes after the first two axes).
            y: labels, int64 [S,B] or probabilities [S,B,K].
            tape: where to leave what it says is to be kept.
            into: where to write the gradient; None for a fresh tensor.
        """

    @abstractmethod
    def tangent(
        self,
        v: Tensor,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape | None = None,
        needs: Needs = EVERYTHING,
        into: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """d/de of the gradients in (theta, x, y) at theta + e v: (Hv, dx, dy).

        By symmetry the same three are the gradient of <grad_theta loss, v>. What ``needs`` does not
        name, and dy for labels that are class indices, comes back as None. ``tape`` is the one
        :meth:`gradient` had for the same theta, x and y; ``into`` is for Hv.
        """

    @abstractmethod
    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Network outputs [S,B,K], without a graph."""

    def tape_options(self, x: Tensor) -> list[TapeOption]:
        """What a step on images like ``x`` may keep, the most work saved per byte first."""
        return []


def flatten_parameters(module: nn.Module) -> Tensor:
    """The module's weights as one flat vector [P] in ``named_parameters()`` order."""
    return torch.cat([p.detach().reshape(-1) for _, p in module.named_parameters()])


def split_flat(
    flat: Tensor, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> Mapping[str, Tensor]:
    """Views of a flat vector [P] under the parameters' names."""
    parts = flat.split([prod(shape) for shape in shapes])
    return {n: part.view(s) for n, part, s in zip(names, parts, shapes, strict=True)}
