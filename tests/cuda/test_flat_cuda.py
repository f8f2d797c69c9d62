"""The flat-vector ops of csrc/cuda."""

import pytest
import torch
from flat_contract import DEVICE, OPS, FlatOps
from tolerances import FORMULA

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class CudaFlatOps(FlatOps):
    @pytest.fixture(autouse=True)
    def ops(self, run):
        self.run = run

    @pytest.mark.parametrize("op", OPS)
    def test_no_bit_depends_on_the_order_of_threads(self, op, monkeypatch):
        # in memory of their size, whose ends the sanitizers watch
        args = (*(v.clone() for v in self.vectors((2, 5001))), *self.tail(op, 2))
        forwards = self.run(op, *args)
        monkeypatch.setenv("FASTMTT_BACKWARDS", "1")
        assert torch.equal(self.run(op, *args), forwards)

    def test_no_bit_of_sgd_momentum_depends_on_the_order_of_threads(self, monkeypatch):
        args = [a.clone() if torch.is_tensor(a) else a for a in self.momentum((2, 5001))]
        forwards = self.run("sgd_momentum", *args)
        monkeypatch.setenv("FASTMTT_BACKWARDS", "1")
        backwards = self.run("sgd_momentum", *args)
        assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))

    @pytest.mark.parametrize("moved", range(5))
    def test_no_bit_of_sgd_momentum_depends_on_alignment(self, moved):
        """Of any one of the five vectors: of each, neighbours go together as far as all allow."""
        vectors, rest = self.momentum((1, 4097))[:3], self.momentum((1, 4097))[3:]
        vectors = [v.clone() for v in vectors]
        want = self.run("sgd_momentum", *vectors, *rest)
        tensors = [*vectors, *(torch.empty_like(w) for w in want)]
        for shift in range(1, 5):
            place = torch.empty(1, 4104, device=DEVICE, dtype=self.dtype)[:, shift : shift + 4097]
            given = [*tensors[:moved], place.copy_(tensors[moved]), *tensors[moved + 1 :]]
            got = self.run("sgd_momentum", *given[:3], *rest, into=given[3:])
            assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))

    @pytest.mark.parametrize("op", OPS)
    def test_no_bit_depends_on_alignment(self, op):
        """Rows are read 16, 8 or fewer bytes at a time, by where they begin."""
        tail = self.tail(op, 1)
        a, b = (v.clone() for v in self.vectors((1, 4097)))
        want = self.run(op, a, b, *tail)
        for shift in range(1, 5):
            moved = [torch.empty(1, 4104, device=DEVICE, dtype=self.dtype) for _ in "ab"]
            places = [m[:, shift : shift + 4097] for m in moved]
            for place, vector in zip(places, (a, b), strict=True):
                place.copy_(vector)
            assert torch.equal(self.run(op, *places, *tail), want)


class TestSingle(CudaFlatOps):
    def test_what_is_refused(self):
        a = torch.zeros(2, 3, device=DEVICE)
        for op in OPS:
            for wrong, words in ((a[:1], "must have the shape of"), (a.double(), "the dtype of")):
                with pytest.raises(RuntimeError, match=f"{op}: .* {words}"):
                    self.run(op, a, wrong, *self.tail(op, 2))
            with pytest.raises(RuntimeError, match=f"{op}: .* float32 or float64, got Half"):
                self.run(op, a.half(), a.half(), *self.tail(op, 2))
            for wrong in (torch.empty(2, 3, 2, device=DEVICE)[..., 0].mT, a.double()):
                with pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
                    self.run(op, a, a, *self.tail(op, 2), into=[wrong])
        for keep in (a, a[0, :2] > 0):
            with pytest.raises(RuntimeError, match="sqdist: keep must"):
                self.run("sqdist", a, a, keep)

    def test_memory_that_may_not_be_shared(self):
        a = torch.zeros(2, 12, device=DEVICE)
        overlapping = torch.as_strided(a, (2, 6), (6, 1), 3)
        inside, rate = torch.as_strided(a, (2, 6), (6, 1)), torch.ones((), device=DEVICE)
        with pytest.raises(RuntimeError, match="result must be theta itself or lie apart"):
            self.run("sgd_update", inside, inside, rate, into=[overlapping])
        with pytest.raises(RuntimeError, match="result must not lie in the memory of lr"):
            self.run("sgd_update", a[:1, :1], a[:1, :1], a[0, :1], into=[a[:1, :1]])

    def test_what_sgd_momentum_refuses(self):
        a, rate = torch.zeros(2, 12, device=DEVICE), torch.ones((), device=DEVICE)

        def call(theta, g, velocity, lr=rate, into=None):
            self.run("sgd_momentum", theta, g, velocity, lr, 0.9, 0.0, into=into)

        with pytest.raises(RuntimeError, match="sgd_momentum: velocity must have the shape of the"):
            call(a, a, a[:1])
        with pytest.raises(RuntimeError, match="sgd_momentum: lr must have the dtype of theta"):
            call(a, a, a, rate.double())
        with pytest.raises(RuntimeError, match="sgd_momentum: new_velocity must be .* written"):
            call(a, a, a, into=[a.clone(), a[:1]])
        with pytest.raises(RuntimeError, match="new_velocity must not lie in the memory of new_th"):
            call(a, a, a, into=[a, a])
        padded, behind = (torch.as_strided(a, (2, 6), (8, 1), start) for start in (0, 1))
        with pytest.raises(RuntimeError, match="new_velocity must not lie in the memory of new_th"):
            call(*(padded.clone() for _ in range(3)), into=[padded, behind])
        inside, across = (torch.as_strided(a, (2, 6), (6, 1), start) for start in (0, 3))
        with pytest.raises(RuntimeError, match="new_theta must be velocity itself or lie apart"):
            call(inside.clone(), inside.clone(), inside, into=[across, inside.clone()])
        with pytest.raises(RuntimeError, match="new_velocity must not lie in the memory of lr"):
            one, there = torch.ones(1, 1, device=DEVICE), a[:1, :1]
            call(one, one, one, a[0, :1], into=[one, there])

    @NEEDS_GPU
    @pytest.mark.parametrize("op", OPS)
    def test_a_graph_repeats_an_op_on_what_its_arguments_hold_then(self, op):
        pair, tail = [v.clone() for v in self.vectors((2, 9001))], self.tail(op, 2)
        place = torch.empty_like(self.run(op, *pair, *tail))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run(op, *pair, *tail, into=[place])
        for tensor, other in zip(pair, self.vectors((2, 9001), seed=1), strict=True):
            tensor.copy_(other)
        graph.replay()
        assert torch.equal(place, self.run(op, *pair, *tail))

    @NEEDS_GPU
    def test_one_launch_each(self):
        a, b = self.vectors((2, 9001))
        calls = [(op, (a, b, *self.tail(op, 2))) for op in OPS]
        for op, args in (*calls, ("sgd_momentum", self.momentum((2, 9001)))):
            self.run(op, *args)
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
                torch.use_deterministic_algorithms(False)  # it fills fresh memory by a launch
                self.run(op, *args)
                torch.cuda.synchronize()
            assert len([e for e in seen.events() if "whole<" in e.name]) == 1, op

    @NEEDS_GPU
    def test_a_tensor_on_another_device_is_refused(self):
        a, b = self.vectors((2, 37))
        with pytest.raises(RuntimeError, match="b must be on the device of a, cuda:0, got cpu"):
            self.run("dot", a, b.cpu())


class TestDouble(CudaFlatOps):
    dtype = torch.float64
    rounding = FORMULA
