"""Triton's DSA."""

from importlib import import_module

import pytest
from dsa_contract import EITHER, DsaOps

kernels = import_module("fastmtt.kernels.dsa")  # the package's own dsa is the op


class TestTriton(DsaOps):
    def run(self, op, *args, into=None):
        return getattr(kernels, op)(*args, into=into)

    @EITHER
    def test_what_is_refused(self, op):
        x, kinds, values, hole = self.arguments((2, 3, 1, 4, 5), 2)
        for args, sentence in (
            ((x[0], kinds, values), r"images must be \[S,B,C,H,W\], got \[3, 1, 4, 5\]"),
            ((x, kinds[:1], values), r"kind must be int64 of shape \[2\]"),
            ((x, kinds.int(), values), r"kind must be int64 of shape \[2\], got torch.int32"),
            ((x, kinds, values[..., :2]), r"values must be torch.float32 of shape \[2, 3, 3\]"),
            ((x, kinds, values.double()), "values must be torch.float32"),
        ):
            with pytest.raises(RuntimeError, match=f"{op}: {sentence}"):
                self.run(op, *args, hole)
        with pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
            self.run(op, x, kinds, values, hole, into=[x.mT.contiguous().mT])
