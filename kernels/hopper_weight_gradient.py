"""The weight gradient on Hopper GPUs, by the CUDA kernel of csrc/cuda/hopper_weight_gradient.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from fastmtt.kernels.tuning import Config
from torch import Tensor

from fastmtt.ops import backends

SHARES = (3, 4)  # of the product, by plan: so many blocks make one part
CHANNELS, SIDES = 128, (8, 16)
STRIP = 8  # columns that a block walks down at a time


def plans(pairs: Sequence[tuple[Tensor, Tensor]], precision: str) -> list[Config]:
    """The configurations that can serve; none where the GPU or the build is another.

    Args:
        pairs: (a, gz) of shape [S,B,H,W,C], one or two.
        precision: of :mod:`fastmtt.kernels.precision`.
    """
    given = [t for pair in pairs for t in pair]
    if precision != "tf32" or not all(_fits(t) for t in given) or not _served(given[0].device):
        return []
    return [Config({"HOPPER": plan}, capability=90) for plan in range(len(SHARES))]


def _fits(t: Tensor) -> bool:
    _, images, height, width, channels = t.shape
    shape = images > 0 and height == width and height in SIDES and channels == CHANNELS
    return shape and t.data_ptr() % 16 == 0  # where tensor copies may begin


@cache
def _served(device: torch.device) -> bool:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    return backends.extension_error() is None and hasattr(
        torch.ops.fastmtt_hopper, "weight_gradient"
    )


def parts(config: Config, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient's parts [S,n,9*128*128], still to be summed over n."""
    plan = config.sizes["HOPPER"]
    (a, gz), second = pairs[0], pairs[1] if len(pairs) == 2 else (None, None)
    images, side = a.shape[1:3]
    strips = len(pairs) * images * side // STRIP
    processors = torch.cuda.get_device_properties(a.device).multi_processor_count
    count = count_of(strips, side, processors // SHARES[plan] // a.shape[0])
    found = a.new_empty(a.shape[0], count, 9 * CHANNELS * CHANNELS)
    torch.ops.fastmtt_hopper.weight_gradient(a, gz, *second, plan, found)
    return found


def count_of(strips: int, side: int, most: int) -> int:
    """How many parts a student's gradient has.

    Each of n parts sums an n-th of all strips. To write and to sum a part takes about as long as a
    block takes for one row of a strip, so that the square root of all rows is best. Fewer parts
    are as fast if the busiest block has no more strips.

    Args:
        strips: of eight columns, in all pairs.
        side: rows of a strip.
        most: parts that the GPU's processors work on at once.
    """
    count = max(1, min(most, math.isqrt(strips * side), strips))
    busiest = -(-strips // count)
    return -(-strips // busiest)
