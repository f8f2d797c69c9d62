"""The ops as Triton kernels: same names and arguments as in :mod:`fastmtt.ops.reference`.

Each takes ``into=``, the tensors to write its results into, as :func:`fastmtt.ops.backends.call`
hands them on. Installed as ``fastmtt.kernels``; nothing but :mod:`fastmtt.ops.backends` imports it.
"""

from __future__ import annotations

from fastmtt.kernels.tuning import interpreting

__all__ = ["interpreting"]
