"""The ops as Triton kernels: same names and arguments as in :mod:`fastmtt.ops.reference`.

Each takes ``into=``, the tensors to write its results into, as :func:`fastmtt.ops.backends.call`
hands them on. Installed as ``fastmtt.kernels``; nothing but :mod:`fastmtt.ops.backends` imports it.
"""

from __future__ import annotations

from fastmtt.kernels.conv_block import conv_block
from fastmtt.kernels.conv_block_backward import conv_block_backward
from fastmtt.kernels.conv_block_backward_jvp import conv_block_backward_jvp
from fastmtt.kernels.conv_block_jvp import conv_block_jvp
from fastmtt.kernels.dsa import dsa, dsa_transpose
from fastmtt.kernels.flat import dot, gsam_combine, gsam_perturb, sgd_update, sqdist
from fastmtt.kernels.linear_xent import (
    linear_xent,
    linear_xent_backward,
    linear_xent_backward_jvp,
    linear_xent_jvp,
)
from fastmtt.kernels.momentum import sgd_momentum
from fastmtt.kernels.tuning import interpreting

__all__ = [
    "conv_block",
    "conv_block_backward",
    "conv_block_backward_jvp",
    "conv_block_jvp",
    "dot",
    "dsa",
    "dsa_transpose",
    "gsam_combine",
    "gsam_perturb",
    "interpreting",
    "linear_xent",
    "linear_xent_backward",
    "linear_xent_backward_jvp",
    "linear_xent_jvp",
    "sgd_momentum",
    "sgd_update",
    "sqdist",
]
