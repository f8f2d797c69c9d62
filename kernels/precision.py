"""What a convolution multiplies in: bfloat16, tf32 or float32. Sums are float32 in all three."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtt.ops.reference_block import BF16_CHANNELS

PRECISIONS = ("bf16", "tf32", "ieee")


def of(a: Tensor, channels: int, bf16: bool) -> str:
    """The precision of a block's convolutions: one of :data:`PRECISIONS`.

    Args:
        a: any of the block's activations; says whether this is a GPU.
        channels: input channels of the block; with few of them bf16 has no effect.
        bf16: whether bfloat16 is asked for. Otherwise torch's switch for convolutions decides.
    """
    if bf16 and channels >= BF16_CHANNELS:
        return "bf16"
    return "tf32" if a.is_cuda and torch.backends.cudnn.allow_tf32 else "ieee"
