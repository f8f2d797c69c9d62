"""The floor: a step's convolutions alone, each at the best rate PyTorch reaches in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.problem import CHANNELS, DEPTH, IMAGE

KINDS = ("forward", "input gradient", "weight gradient")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# How often each kind of convolution comes in a step, the first layer's and the others'. The exact
# matching step is taken at 9F, though its first layer, whose input has no tangent, could do with
# two of each; training leaves out the first layer's input gradient, which nobody computes.
MATCHING = ((3, 3, 3), (3, 3, 3))
TRAINING = ((1, 0, 1), (1, 1, 1))
TESTING = ((1, 0, 0), (1, 0, 0))
Counts = tuple[tuple[int, ...], tuple[int, ...]]


def prepare(batch: int, width: int, precision: str, seconds: float) -> Callable[[], Tensor]:
    """Every convolution of the ConvNet, to be run in turn with the contenders.

    Args:
        batch: images at a time.
        width: channels of a block.
        precision: of its tensors.
        seconds: how long a run repeats each convolution.

    Returns:
        A function to the best times so far [layer, kind], in seconds.
    """
    layers = [(width if i else CHANNELS, IMAGE >> i) for i in range(DEPTH)]
    convolutions = [
        [_convolution(kind, batch, channels, width, side, DTYPES[precision]) for kind in KINDS]
        for channels, side in layers
    ]
    best = torch.full((DEPTH, len(KINDS)), torch.inf, dtype=torch.float64)

    def run() -> Tensor:
        for layer, kinds in enumerate(convolutions):
            for kind, convolution in enumerate(kinds):
                best[layer, kind] = min(float(best[layer, kind]), _best_time(convolution, seconds))
        return best

    return run


def total(best: Tensor, counts: Counts) -> float:
    """Seconds of a step's convolutions [s], given each one's best time [layer, kind]."""
    first, others = counts
    return float((best * torch.tensor([first] + [others] * (DEPTH - 1))).sum())


def milliseconds(best: Tensor) -> dict[str, float]:
    """Each convolution's best time by name, for the results."""
    return {
        f"{kind} {IMAGE >> layer}x{IMAGE >> layer}": float(best[layer, k]) * 1e3
        for layer in range(DEPTH)
        for k, kind in enumerate(KINDS)
    }


def _best_time(run: Callable[[], Any], seconds: float) -> float:
    """The shortest time of ``run`` within ``seconds`` of repetitions, at least three."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _convolution(
    kind: str, batch: int, channels: int, width: int, side: int, dtype: torch.dtype
) -> Callable[[], Any]:
    x = _channels_last(dtype, batch, channels, side, side)
    g = _channels_last(dtype, batch, width, side, side)
    w = _channels_last(dtype, width, channels, 3, 3)
    if kind == "forward":
        return lambda: torch.conv2d(x, w, padding=1)
    mask = [kind == "input gradient", kind == "weight gradient", False]
    ones = [1, 1]
    return lambda: torch.ops.aten.convolution_backward(
        g, x, w, None, ones, ones, ones, False, [0, 0], 1, mask
    )


def _channels_last(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
