"""Triton's flat-vector ops."""

import pytest
import torch
from flat_contract import DEVICE, OPS, FlatOps

from fastmtt import kernels


class TestTriton(FlatOps):
    def run(self, op, *args, into=None):
        return getattr(kernels, op)(*args, into=into)

    def test_what_is_refused(self):
        a = torch.zeros(2, 3, device=DEVICE)
        for op in OPS:
            words = rf"{op}: .* must be torch.float32 of shape \[2, 3\]"
            with pytest.raises(RuntimeError, match=words):
                self.run(op, a, a[:1], *self.tail(op, 2))
            wrong = torch.empty(2, 3, 2, device=DEVICE)[..., 0].mT
            with pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
                self.run(op, a, a, *self.tail(op, 2), into=[wrong])
        with pytest.raises(RuntimeError, match="sgd_momentum: velocity must be torch.float32 of"):
            self.run("sgd_momentum", a, a, a[:1], *self.tail("sgd_update", 2), 0.9, 0.0)
        for keep in (a, a[0, :2] > 0):
            with pytest.raises(RuntimeError, match="sqdist: keep must be bool of shape"):
                self.run("sqdist", a, a, keep)
