"""Draws as data: random numbers that are a function of a key, not of what ran before.

Every number comes from NumPy's counter-based Philox generator keyed by (seed, what, index): the
same on every device, in any order, however students are grouped. Kernels take numbers and draw
none, so that an op, its transpose and the published order of draws go through the same ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


def stream(seed: int, what: str, *index: int) -> np.random.Generator:
    """The generator of one key.

    Args:
        seed: the run's seed.
        what: what is drawn, for example "batch" or "dsa".
        index: up to three numbers, for example iteration and segment.
    """
    if len(index) > 3:
        raise ValueError(f"a key takes up to three numbers, got {index}")
    # how many numbers there are is part of the key: (1,) and (1, 0) are different draws
    name = zlib.crc32(f"{what}/{len(index)}".encode())
    key = np.array([seed % 2**64, name], dtype=np.uint64)
    # the lowest counter word is the generator's own position in the stream
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(index)] = index
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def torch_seed(seed: int, what: str, *index: int) -> int:
    """A seed for a torch generator, drawn by key."""
    return int(stream(seed, what, *index).integers(2**63))


def batch_indices(rng: np.random.Generator, n: int, batch: int, steps: int) -> list[Tensor]:
    """Rows of the set for each step, int64, by the published rule.

    A pass is a permutation cut into chunks of ``batch``; chunks are used from the last to the
    first, so that a short remainder comes first in each pass.
    """
    chunks: list[Tensor] = []
    picked = []
    for _ in range(steps):
        if not chunks:
            chunks = list(torch.from_numpy(rng.permutation(n)).split(batch))
        picked.append(chunks.pop())
    return picked


def published_batch_indices(
    generator: torch.Generator, n: int, batch: int, chunks: list[Tensor]
) -> Tensor:
    """The next step's rows by torch's generator, in the published programs' order of draws.

    Args:
        generator: a CPU generator.
        n: rows in the set.
        batch: rows a step.
        chunks: what is left of the current pass; emptied and refilled here.
    """
    if not chunks:
        chunks.extend(torch.randperm(n, generator=generator).split(batch))
    return chunks.pop()


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
