"""Memory that stays: tensors handed out by name, the same ones at every call."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor


class Room:
    """Tensors kept between calls. What is in one may be anything: whoever asks writes first."""

    def __init__(self) -> None:
        """Start empty."""
        self._tensors: dict[tuple[Hashable, ...], Tensor] = {}

    def tensor(self, name: Hashable, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The tensor of this name and shape, with the dtype and device of ``like``."""
        key = name, tuple(shape), like.dtype, like.device
        if key not in self._tensors:
            with torch.inference_mode(False):  # it may serve later calls outside of such a block
                self._tensors[key] = like.new_empty(shape)
        return self._tensors[key]

    def forget(self, *names: tuple[Hashable, ...]) -> None:
        """Give back the tensors whose names begin with one of these."""
        for key in [*self._tensors]:
            name = key[0]
            if isinstance(name, tuple) and any(name[: len(n)] == n for n in names):
                del self._tensors[key]

    def clear(self) -> None:
        """Give all memory back."""
        self._tensors.clear()

    @property
    def bytes(self) -> int:
        """What all tensors take."""
        return sum(t.nbytes for t in self._tensors.values())

    @property
    def largest(self) -> int:
        """What the largest tensor takes, in bytes."""
        return max((t.nbytes for t in self._tensors.values()), default=0)

    def scratch(self, like: Tensor) -> Tensor:
        """Bytes a compiled op may use as it likes; ops make them more where they need more.

        They are kept on a CPU alone: a GPU's allocator gives fresh ones back for nothing, and ones
        that grow would leave a CUDA graph recorded before with memory that is no more.
        """
        if like.device.type != "cpu":
            return torch.empty(0, dtype=torch.uint8, device=like.device)
        key = "scratch", like.device
        if key not in self._tensors:
            with torch.inference_mode(False):
                self._tensors[key] = torch.empty(0, dtype=torch.uint8, device=like.device)
        return self._tensors[key]


class Tape:
    """What one step keeps for the adjoint sweep, in memory that serves its next run as well.

    One backend chooses the keys, fills it and reads it: what ops leave out is not the same in all.
    """

    def __init__(self, keep: frozenset[Hashable] = frozenset()) -> None:
        """Take the keys, out of ``Student.tape_options``, of what is to be kept."""
        self.keep = keep
        self.room = Room()
