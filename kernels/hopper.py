"""Convolutions of 128 channels on Hopper GPUs, by the CUDA kernels of csrc/cuda/hopper_conv.cu.

Tensor copies and warpgroup products keep its tensor cores busier than Triton's code does. They are
further configurations of the same kernels: the tuner measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastmtt.kernels.tuning import Config
from torch import Tensor

from fastmtt.ops import backends

CHANNELS = 128
SIDES = (8, 16)


def plans(
    activations: Sequence[Tensor | None],
    precision: str,
    others: Sequence[Tensor] = (),
    *,
    primal: bool,
    tangent: bool,
) -> list[Config]:
    """The configurations that can serve a call; none where the GPU or the build is another.

    Args:
        activations: all that have a plane: [S,B,H,W,C] each, inputs and results before the pool.
        others: all other results.
        precision: of :mod:`fastmtt.kernels.precision`.
        primal: whether conv(a, w) is computed.
        tangent: whether conv(a, w_dot) + conv(a_dot, w) is.
    """
    given = [t for t in activations if t is not None]
    if precision != "tf32" or not all(fits(t) for t in given) or not on_hopper(given[0]):
        return []
    if not all(aligned(t) for t in (*given, *others)):
        return []
    numbers = _ops().plans(primal, tangent, given[0].shape[2])
    return [Config({"HOPPER": number}, capability=90) for number in numbers]


def _ops() -> Any:
    return torch.ops.fastmtt_hopper


def fits(t: Tensor) -> bool:
    """Whether activations [S,B,H,W,C] have a size that is served."""
    _, _, height, width, channels = t.shape
    return height == width and height in SIDES and channels == CHANNELS


def aligned(t: Tensor) -> bool:
    """Whether tensor copies may begin there."""
    return t.data_ptr() % 16 == 0


def on_hopper(t: Tensor) -> bool:
    """Whether it is on such a GPU, and the build has code for that."""
    on_gpu = t.is_cuda and backends.hopper()
    return on_gpu and torch.cuda.get_device_capability(t.device) == (9, 0)


def serves(config: Config) -> bool:
    """Whether a configuration is one of :func:`plans`."""
    return "HOPPER" in config.sizes


def conv_block(config: Config, inputs: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """The block's inputs (a, w, gamma, beta), and where its results (p, xhat, rstd) go."""
    _ops().conv_block(*inputs, *results, config.sizes["HOPPER"])


def conv_block_jvp(
    config: Config, inputs: Sequence[Tensor | None], results: Sequence[Tensor], *, given: bool
) -> None:
    """The tangent's.

    Args:
        config: one of :func:`plans`.
        inputs: a, a_dot, w, w_dot, gamma, gamma_dot, beta, beta_dot.
        results: p, p_dot, xhat_dot, rstd_dot, xhat, rstd.
        given: whether the last two are known, and read.
    """
    number = config.sizes["HOPPER"]
    _ops().conv_block_jvp(*inputs, given, *results, number)


def convolution(
    config: Config,
    inputs: Sequence[Tensor | None],
    transposed: bool,
    results: Sequence[Tensor | None],
) -> None:
    """The convolution's inputs (a, a_dot, w, w_dot), and where its results (out, out_dot) go."""
    number = config.sizes["HOPPER"]
    _ops().convolution(*inputs, transposed, *results, number)
