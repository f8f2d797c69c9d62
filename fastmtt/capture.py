"""CUDA graphs: work over tensors that stay in place, recorded once and replayed in one launch.

Where there is no GPU the same code is called plainly: everything that may be recorded runs in the
ordinary tests, under a guard that lets nothing read the device on the host.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fastmtt.ops import backends
from fastmtt.student import ConvNetStudent
from fastmtt.student.heads import CrossEntropyHead

T = TypeVar("T")
logger = logging.getLogger("fastmtt")


class Captured(Generic[T]):
    """One function's recording: it reads and writes tensors that stay where they are.

    The first call runs it, so that kernels are compiled and tuned and its own tensors made; the
    second records it; from then on the recording is replayed. The function comes with each call,
    for one that is kept would keep its owner, who keeps this, and a GPU's memory with them.

    Args:
        graph: whether to record; otherwise every call runs the function.
    """

    def __init__(self, graph: bool) -> None:
        """Record nothing yet."""
        self._wanted, self._ran = graph, False
        self._recorded: tuple[torch.cuda.CUDAGraph, T] | None = None

    def __call__(self, function: Callable[[], T]) -> T:
        """Run or replay; give what the function returns.

        Args:
            function: the same at every call. It must not look at the device's values on the host;
                what it returns are tensors of its own, which the next call fills anew.
        """
        if not self._wanted or not self._ran:
            self._ran = True
            return function()
        if self._recorded is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=backends.recording_stream()):
                result = function()
            self._recorded = graph, result
        graph, result = self._recorded
        graph.replay()
        return result


class Latest(Generic[T]):
    """The few things used last, of a kind that is costly to make and to keep."""

    def __init__(self, most: int) -> None:
        """Keep at most so many."""
        self._most = most
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is kept under the key, made where there is nothing."""
        if key not in self._kept:
            while len(self._kept) >= self._most:  # before the next takes memory
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]


def can_capture(wanted: bool, network: object, augments: bool, like: Tensor) -> bool:
    """Whether training or matching a network can be recorded; what stands in the way is said once.

    Args:
        wanted: whether it should be.
        network: a student or a single network.
        augments: whether batches go through DSA.
        like: weights, for their device and dtype.
    """
    if not wanted or not like.is_cuda:
        return False
    ours = isinstance(network, ConvNetStudent) and isinstance(network.head, CrossEntropyHead)
    if not ours:
        say_once("a network or loss of one's own may look at its tensors: no CUDA graph is made")
        return False
    plain = {row.op: row.backend for row in backends.table()}["dsa"] == "reference"
    if augments and (plain or like.dtype != torch.float32):
        say_once("plain torch's DSA looks at its draws: no CUDA graph is made")
        return False
    return True


def send(source: Tensor, place: Tensor) -> None:
    """Copy to a tensor that stays; from the host's memory to a GPU without waiting for it."""
    place.copy_(_pinned(source, place), non_blocking=True)


def sent(source: Tensor, like: Tensor) -> Tensor:
    """The same values with another tensor's dtype and device, copied without waiting."""
    return _pinned(source, like).to(like, non_blocking=True)


def _pinned(source: Tensor, place: Tensor) -> Tensor:
    # pinned memory is given out again only when the copies from it are done
    return source.contiguous().pin_memory() if place.is_cuda and not source.is_cuda else source


@cache
def say_once(message: str) -> None:
    """Tell the user, the first time."""
    logger.warning(message)
