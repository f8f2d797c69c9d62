"""What a convolution multiplies in: bfloat16, tf32 or float32. Sums are float32 in all three."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastmtt.kernels.tuning import interpreting
from torch import Tensor

from fastmtt.ops.reference_block import BF16_CHANNELS

_INTERPRETING: tl.constexpr = tl.constexpr(interpreting)
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


@triton.jit
def rounded(x, PRECISION: tl.constexpr):
    """float32 to the nearest bfloat16 or tf32, which tensor cores do not take by themselves.

    They cut bits off tf32. Triton's interpreter does so for bfloat16, hence the integers here.
    """
    bits = x.to(tl.int32, bitcast=True)
    if PRECISION == "bf16":  # ties to even, as torch rounds
        bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & -0x10000
    elif PRECISION == "tf32":
        bits = (bits + 0x1000) & -0x2000
    nearest = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # a NaN's bits overflow
    return nearest.to(tl.bfloat16) if PRECISION == "bf16" else nearest


@triton.jit
def multiply(x, y, sums, PRECISION: tl.constexpr):
    """``sums`` + the matrix product of x and y, bfloat16 tensors or float32 ones."""
    if _INTERPRETING and PRECISION == "bf16":  # the interpreter would multiply the bits as integers
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    rounding: tl.constexpr = "tf32" if PRECISION == "tf32" else "ieee"
    return tl.dot(x, y, sums, input_precision=rounding)
