"""The ConvNet block of csrc/cuda."""

import pytest
import torch
from block_contract import BlockOps, arguments, away_from_the_kink, calls, error, pick, wide
from compare import assert_close, relative_error
from tolerances import FORMULA, REPLAYED_MASKS_32, STATISTIC_32, TIMES_TORCH

from fastmtt.ops import reference

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# (S, B, H, W, Cin, Cout): more windows than a block's threads keep, with channels that fill 8 bytes
# and that do not; more images and channels than the last stage takes at once.
SHAPES = [(2, 1, 34, 35, 1, 8), (1, 1, 33, 36, 2, 3), (1, 11, 4, 3, 2, 68)]


@pytest.fixture(autouse=True)
def float32_throughout(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class TestCuda(BlockOps):
    device = "cuda" if torch.cuda.is_available() else "cpu"

    @pytest.fixture(autouse=True)
    def ops(self, run):
        self.run = run

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_what_a_block_of_threads_takes_in_turns_agrees(self, shape):
        self.assert_agrees(self.arguments(shape), FORMULA)
        self.assert_agrees(self.here(away_from_the_kink(shape)), REPLAYED_MASKS_32)

    @pytest.mark.parametrize("first, mean", [(0.0, 1000.0), (1e4, 0.0), (-50.0, 50.0)], ids=str)
    @pytest.mark.parametrize("corner", [1, 2])
    @pytest.mark.parametrize("size", [(32, 32), (8, 8), (17, 40), (128, 128)], ids=str)
    def test_statistics_are_as_exact_as_those_of_two_passes(self, size, corner, first, mean):
        """Of planes far off zero, and of planes whose first pixel or window lies far off."""
        a = mean + torch.randn(1, 3, *size, 1, generator=torch.Generator().manual_seed(0))
        if first:
            a[:, :, :corner, :corner] = first
        w = torch.zeros(1, 3, 3, 1, 2)
        w[:, 1, 1] = 1.0  # the identity
        args = [t.to(self.device) for t in (a, w, torch.ones(1, 2), torch.zeros(1, 2))]
        _, _, got = self.run("conv_block", *args)
        own, want = (1 / (x.var((2, 3), unbiased=False) + 1e-5).sqrt() for x in (a, a.double()))
        allowed = max(TIMES_TORCH * relative_error(own, want), STATISTIC_32)
        assert_close(got.cpu(), want.expand(got.shape), allowed)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_no_bit_depends_on_the_order_of_threads(self, dtype, monkeypatch):
        for op, args in calls(self.arguments((2, 3, 9, 10, 3, 20), dtype)):
            monkeypatch.delenv("FASTMTT_BACKWARDS", raising=False)
            forwards = self.run(op, *args)
            monkeypatch.setenv("FASTMTT_BACKWARDS", "1")
            for got, want in zip(self.run(op, *args), forwards, strict=True):
                assert torch.equal(got, want)

    @pytest.mark.parametrize("shape", [(1, 2, 6, 6, 3, 8), SHAPES[0]], ids=str)
    def test_no_bit_depends_on_alignment(self, shape):
        """Results that begin anywhere are written one by one, arguments read so."""
        v = {name: t.contiguous() for name, t in self.arguments(shape, torch.float32).items()}
        moved = {name: self.anywhere(t).copy_(t) for name, t in v.items()}
        for (op, args), (_, others) in zip(calls(v), calls(moved), strict=True):
            want = self.run(op, *args)
            places = [self.anywhere(t) for t in want]
            self.run(op, *others, False, into=places)
            assert all(torch.equal(*pair) for pair in zip(places, want, strict=True))

    def anywhere(self, like):
        """A place for a tensor, not on a multiple of 8 bytes."""
        room = torch.empty(1 + like.numel(), dtype=like.dtype, device=self.device)
        return room[1:].view(like.shape)

    @pytest.mark.parametrize("shape", [(2, 2, 6, 6, 16, 20), (1, 3, 5, 7, 17, 32)], ids=str)
    def test_bf16_rounds_what_the_reference_rounds(self, shape):
        """Both round the same operands; a gz on the edge of two bfloat16 may fall on either side:
        of a few in ten thousand comes a hundredth of bfloat16's error."""
        for op, args in calls(self.here(away_from_the_kink(shape))):
            plain = getattr(reference, op)
            rounded, truth = plain(*args, True), plain(*wide(args))
            for got, own, want in zip(self.run(op, *args, True), rounded, truth, strict=True):
                if want.numel() > 0:
                    assert_close(got, own, 0.05 * relative_error(own, want) + REPLAYED_MASKS_32, op)

    def test_students_in_one_place_are_refused(self):
        v = self.arguments((2, 1, 4, 4, 3, 8))
        args = pick(v, "a w gamma beta")
        p, xhat, rstd = self.run("conv_block", *args)
        with pytest.raises(RuntimeError, match="xhat must be .* contiguous for each student"):
            self.run("conv_block", *args, False, into=[p, xhat[:1].expand(xhat.shape), rstd])
        with pytest.raises(RuntimeError, match="xhat must not lie in the memory of p"):
            inside = xhat.flatten()[: p.numel()].view(p.shape)
            self.run("conv_block", *args, False, into=[inside, xhat, rstd])

    @NEEDS_GPU
    def test_a_graph_repeats_an_op_on_what_its_arguments_hold_then(self):
        shape = (2, 3, 8, 8, 16, 24)
        for index, (op, args) in enumerate(calls(self.arguments(shape, torch.float32))):
            places = [torch.empty_like(r) for r in self.run(op, *args)]
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.run(op, *args, False, into=places)
            _, others = calls(self.here(arguments(shape, 1, torch.float32)))[index]
            for tensor, other in zip(args, others, strict=True):
                if torch.is_tensor(tensor):
                    tensor.copy_(other)
            graph.replay()
            for place, want in zip(places, self.run(op, *args), strict=True):
                assert error(place, want.double()) <= REPLAYED_MASKS_32

    @NEEDS_GPU
    def test_one_launch_each_beside_the_convolutions(self):
        for op, args in calls(self.arguments((2, 3, 8, 8, 16, 24), torch.float32)):
            self.run(op, *args)
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                self.run(op, *args)
                torch.cuda.synchronize()
            assert len([e for e in seen.events() if "whole<" in e.name]) == 1, op

    @NEEDS_GPU
    def test_a_tensor_on_another_device_is_refused(self):
        v = self.arguments((1, 1, 4, 4, 3, 8))
        with pytest.raises(RuntimeError, match="gamma must be on the device of a, cuda:0, got cpu"):
            self.run("conv_block", v["a"], v["w"], v["gamma"].cpu(), v["beta"])
