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
STEP = 8  # pixels of one instruction


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
    pixels = a[0, ..., 0].numel() * len(pairs)
    processors = torch.cuda.get_device_properties(a.device).multi_processor_count
    count = count_of(a.shape[0], pixels, processors // SHARES[plan])
    found = a.new_empty(a.shape[0], count, 9 * CHANNELS * CHANNELS)
    torch.ops.fastmtt_hopper.weight_gradient(a, gz, *second, plan, found)
    return found


def count_of(students: int, pixels: int, most: int) -> int:
    """How many parts a student's gradient has.

    Each of n parts sums an n-th of all pixels, and takes as long to be written and summed as one
    of its blocks takes for about eight of them: their square root is best.
    """
    return max(1, min(most // students, math.isqrt(pixels // STEP)))
