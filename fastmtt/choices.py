"""A distillation's random choices: start images, segments, batches; by key or as published."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastmtt import draws
from fastmtt.batches import Draws, Plan, draw, draw_published

Segment = tuple[int, int]  # expert, start epoch


class Choices(Protocol):
    """What a run draws."""

    def noise(self, *shape: int) -> Tensor:
        """Start images ~ N(0,1), float32."""
        ...

    def pick(self, label: int, rows: np.ndarray, count: int) -> np.ndarray:
        """``count`` of a class's rows, without repeats."""
        ...

    def segments(
        self, iteration: int, count: int, experts: Sequence[int], low: int, high: int
    ) -> list[Segment]:
        """An iteration's segments: experts in shuffled passes, start epochs in [low, high)."""
        ...

    def batches(self, iteration: int, plan: Plan) -> Draws:
        """An iteration's rows and augmentation parameters."""
        ...

    def state(self) -> dict[str, Any]:
        """What the next draws depend on, as JSON values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        ...


class KeyedChoices:
    """Every choice a function of (seed, what, number): any iteration can be drawn by itself."""

    def __init__(self, seed: int) -> None:
        """Take the run's seed."""
        self.seed = seed

    def noise(self, *shape: int) -> Tensor:
        """See :class:`Choices`."""
        rng = draws.stream(self.seed, "start noise")
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))

    def pick(self, label: int, rows: np.ndarray, count: int) -> np.ndarray:
        """See :class:`Choices`."""
        return draws.stream(self.seed, "start images", label).permutation(rows)[:count]

    def segments(
        self, iteration: int, count: int, experts: Sequence[int], low: int, high: int
    ) -> list[Segment]:
        """See :class:`Choices`."""
        chosen = []
        for number in range(iteration * count, (iteration + 1) * count):
            turn, place = divmod(number, len(experts))
            order = draws.stream(self.seed, "expert", turn).permutation(len(experts))
            start = draws.stream(self.seed, "start epoch", number).integers(low, high)
            chosen.append((experts[order[place]], int(start)))
        return chosen

    def batches(self, iteration: int, plan: Plan) -> Draws:
        """See :class:`Choices`."""
        return draw(seed=self.seed, index=(iteration,), **plan._asdict())

    def state(self) -> dict[str, Any]:
        """Nothing: every draw stands for itself."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`Choices`."""


class PublishedChoices:
    """Python's, NumPy's and torch's generators, drawn from in the published programs' order.

    Those programs seed torch from the clock at every iteration; here all three start from the
    run's seed. Iterations must be drawn in order.
    """

    FILE = 10  # experts in a file of the published buffers

    def __init__(self, seed: int) -> None:
        """Seed the three generators."""
        self.python = random.Random(seed)
        self.numpy = np.random.RandomState(seed % 2**32)
        self.torch = torch.Generator().manual_seed(seed)
        self._files: list[list[int]] = []
        self._file = 0
        self._queue: list[int] = []

    def noise(self, *shape: int) -> Tensor:
        """See :class:`Choices`."""
        return torch.randn(shape, generator=self.torch)

    def pick(self, label: int, rows: np.ndarray, count: int) -> np.ndarray:
        """See :class:`Choices`."""
        return self.numpy.permutation(rows)[:count]

    def segments(
        self, iteration: int, count: int, experts: Sequence[int], low: int, high: int
    ) -> list[Segment]:
        """See :class:`Choices`."""
        return [
            (self._next_expert(experts), int(self.numpy.randint(low, high))) for _ in range(count)
        ]

    def batches(self, iteration: int, plan: Plan) -> Draws:
        """See :class:`Choices`."""
        return draw_published(self.torch, **plan._asdict())

    def state(self) -> dict[str, Any]:
        """The three generators' states and the experts still in the queue."""
        version, words, gauss = self.python.getstate()
        numpy: dict[str, Any] = self.numpy.get_state(legacy=False)
        words_of_numpy = {**numpy["state"], "key": numpy["state"]["key"].tolist()}
        return {
            "python": [version, list(words), gauss],
            "numpy": {**numpy, "state": words_of_numpy},
            "torch": bytes(self.torch.get_state().numpy()).hex(),
            "files": [list(file) for file in self._files],
            "file": self._file,
            "queue": list(self._queue),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See :class:`Choices`."""
        version, words, gauss = state["python"]
        self.python.setstate((version, tuple(words), gauss))
        self.numpy.set_state(state["numpy"])
        self.torch.set_state(torch.frombuffer(bytearray.fromhex(state["torch"]), dtype=torch.uint8))
        self._files, self._file, self._queue = state["files"], state["file"], state["queue"]

    def _next_expert(self, experts: Sequence[int]) -> int:
        """Files in shuffled passes, experts shuffled within each file."""
        if not self._queue:
            if not self._files:
                self._files = [
                    list(experts[i : i + self.FILE]) for i in range(0, len(experts), self.FILE)
                ]
                self.python.shuffle(self._files)
            elif self._file == len(self._files):
                self._file = 0
                self.python.shuffle(self._files)
            self._queue = list(self._files[self._file])
            self._file += 1
            self.python.shuffle(self._queue)
        return self._queue.pop(0)


def make_choices(rng: str, seed: int) -> Choices:
    """Choices by the configuration's ``rng``: "counter" or "published"."""
    return PublishedChoices(seed) if rng == "published" else KeyedChoices(seed)
