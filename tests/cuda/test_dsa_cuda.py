"""DSA and its transpose of csrc/cuda."""

import pytest
import torch
from dsa_contract import EITHER, EVERY, DsaOps
from tolerances import FORMULA, ROUNDING_32

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class CudaDsaOps(DsaOps):
    @pytest.fixture(autouse=True)
    def ops(self, run):
        self.run = run

    @EVERY
    @EITHER
    def test_several_tiles_of_an_image_agree_with_float64(self, op, kind):
        self.agrees(op, (1, 1, 2, 33, 35), kind)

    @EITHER
    def test_no_bit_depends_on_the_order_of_threads(self, op, monkeypatch):
        # in memory of their size, whose ends the sanitizers watch
        args = self.mixed((7, 2, 3, 19, 17))
        forwards = self.run(op, *args)
        monkeypatch.setenv("FASTMTT_BACKWARDS", "1")
        assert torch.equal(self.run(op, *args), forwards)


class TestSingle(CudaDsaOps):
    tolerance = 3 * ROUNDING_32  # positions are of float64

    @EITHER
    def test_values_of_any_precision(self, op):
        x, kinds, values, hole = self.mixed((7, 2, 3, 8, 9))
        got = self.run(op, x, kinds, values, hole)
        assert torch.equal(self.run(op, x, kinds, values.double(), hole), got)
        half = self.run(op, x, kinds, values.half(), hole)
        assert torch.equal(half, self.run(op, x, kinds, values.half().float(), hole))

    @EITHER
    @pytest.mark.parametrize(
        ("position", "wrong", "sentence"),
        [
            (0, lambda t: t[0], r"must have shape \[S, B, C, H, W\], got \[3, 1, 4, 5\]"),
            (0, lambda t: t.half(), "must be float32 or float64, got Half"),
            (1, lambda t: t[:1], r"kind must be int64 of shape \[2\], got Long of shape \[1\]"),
            (1, lambda t: t.int(), r"kind must be int64 of shape \[2\], got Int"),
            (2, lambda t: t[..., :2], r"values must be floating point of shape \[2, 3, 3\]"),
            (2, lambda t: t.long(), "values must be floating point of shape .* got Long"),
        ],
    )
    def test_what_is_refused(self, op, position, wrong, sentence):
        args = list(self.arguments((2, 3, 1, 4, 5), 2))
        args[position] = wrong(args[position])
        with pytest.raises(RuntimeError, match=f"fastmtt::{op}: .*{sentence}"):
            self.run(op, *args)

    @EITHER
    def test_results_that_are_refused(self, op):
        args = self.arguments((2, 3, 1, 4, 5), 2)
        x, _, values, _ = args
        for wrong in (x.mT.contiguous().mT, x.double()):
            with pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
                self.run(op, *args, into=[wrong])
        with pytest.raises(RuntimeError, match="result must not lie in the memory of [xg]"):
            self.run(op, *args, into=[x])
        x = x[..., :1, :1].contiguous()
        inside = values.view(-1)[: x.numel()].view(x.shape)
        with pytest.raises(RuntimeError, match="result must not lie in the memory of values"):
            self.run(op, x, *args[1:], into=[inside])

    @NEEDS_GPU
    @EITHER
    def test_a_graph_repeats_an_op_on_what_its_arguments_hold_then(self, op):
        x, kinds, values, hole = self.mixed((7, 2, 3, 32, 32))
        place = torch.empty_like(self.run(op, x, kinds, values, hole))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(op, x, kinds, values, hole, into=[place])
        kinds.copy_(kinds.flip(0))
        values.copy_(values.flip(0))
        graph.replay()
        assert torch.equal(place, self.run(op, x, kinds, values, hole))

    @NEEDS_GPU
    @EITHER
    def test_one_launch_whatever_the_strides(self, op):
        args = self.mixed((7, 2, 3, 32, 32))
        last = args[0].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        for given in (args, (last, *args[1:])):
            self.run(op, *given)
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                torch.use_deterministic_algorithms(False)  # it fills fresh memory by a launch
                self.run(op, *given)
                torch.cuda.synchronize()
            names = [e.name for e in seen.events()]
            assert sum("whole<" in name for name in names) == 1
            assert not any("elementwise" in name or "Memcpy" in name for name in names)

    @NEEDS_GPU
    def test_a_tensor_on_another_device_is_refused(self):
        x, kinds, values, hole = self.arguments((2, 3, 1, 4, 5), 2)
        with pytest.raises(RuntimeError, match="kind must be on the device of x, cuda:0, got cpu"):
            self.run("dsa", x, kinds.cpu(), values, hole)


class TestDouble(CudaDsaOps):
    dtype = torch.float64
    tolerance = FORMULA
