"""The head of csrc/cuda."""

import pytest
import torch
from head_contract import KINDS, HeadOps, calls, wide
from tolerances import FORMULA

from fastmtt.ops import reference


class CudaHeadOps(HeadOps):
    @pytest.fixture(autouse=True)
    def ops(self, run):
        self.run = run

    @KINDS
    def test_no_bit_depends_on_the_order_of_threads(self, soft, monkeypatch):
        v = self.arguments((2, 20, 70, 18), soft)
        for op, args in calls(v):
            monkeypatch.delenv("FASTMTT_BACKWARDS", raising=False)
            forwards = self.run(op, *args)
            monkeypatch.setenv("FASTMTT_BACKWARDS", "1")
            for got, want in zip(self.run(op, *args), forwards, strict=True):
                assert torch.equal(got, want)

    @pytest.mark.parametrize("batch", [409, 410])
    def test_it_agrees_where_more_logits_have_longer_pieces(self, batch):
        """4100 logits sum over pieces of 256 features, 4090 over pieces of 128."""
        op, args = calls(self.arguments((1, batch, 300, 10), soft=False))[0]
        for got, want in zip(self.run(op, *args), reference.linear_xent(*wide(args)), strict=True):
            self.assert_same(got, want, f"{batch} images")


class TestSingle(CudaHeadOps):
    def test_what_is_refused(self):
        self.assert_refused(
            {
                "f": (lambda f: f[0], r"f must have shape \[S, B, D\]"),
                "w": (lambda w: w[..., :3], r"w must have shape \[2, 5, 4\]"),
                "b": (lambda b: b[:, :3], r"b must have shape \[2, 5\]"),
                "f_dot": (lambda f_dot: f_dot[:1], "f_dot must have shape"),
                "logp": (lambda logp: logp.double(), "logp must have the dtype of f"),
                "logp_dot": (lambda logp_dot: logp_dot[0], "logp_dot must have shape"),
                "y": (lambda y: y.int(), "y must be int64"),
            }
        )


class TestDouble(CudaHeadOps):
    dtype = torch.float64
    tolerance = FORMULA
