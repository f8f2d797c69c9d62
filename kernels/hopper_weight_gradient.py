"""The weight gradient on Hopper GPUs, by the CUDA kernel of csrc/cuda/hopper_weight_gradient.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from fastmtt.kernels.hopper import CHANNELS, aligned, fits, on_hopper
from fastmtt.kernels.tuning import Config
from torch import Tensor

SHARES = (3, 4)  # of the product, by plan: so many blocks make one part
STRIP = 8  # columns that a block walks down at a time


def plans(pairs: Sequence[tuple[Tensor, Tensor]], precision: str) -> list[Config]:
    """The configurations that can serve; none where the GPU or the build is another.

    Args:
        pairs: (a, gz) of shape [S,B,H,W,C], one or two.
        precision: of :mod:`fastmtt.kernels.precision`.
    """
    given = [t for pair in pairs for t in pair]
    served = precision == "tf32" and given[0].shape[1] > 0 and all(map(fits, given))
    if not served or not all(map(aligned, given)) or not on_hopper(given[0]):
        return []
    return [Config({"HOPPER": plan}, capability=90) for plan in range(len(SHARES))]


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
