"""The Hopper convolution: its kernels on a Hopper GPU; on a CPU, all that leads to a launch."""

from functools import cache
from itertools import product

import pytest
import torch
from compare import assert_close
from fastmtt.kernels import hopper
from tolerances import TF32, TF32_SUM

from fastmtt import kernels
from fastmtt.ops import backends, reference

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NEEDS_GPU = pytest.mark.skipif(not ON_GPU, reason="needs a Hopper GPU")
SIZES = [(1, 1), (2, 3), (3, 5), (2, 257)] if ON_GPU else [(2, 2)]  # of students, of images
WANTED = [(True, False), (True, True), (False, True)]  # the primal, the tangent
WIDTH = 128


@pytest.fixture(scope="module")
def ops(cuda_ops):
    """The ops as built, or on a machine without a GPU with the host's launch."""
    if not ON_GPU:
        return torch.ops.fastmtt_hopper_on_host
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU, of compute capability 9.0")
    if not backends.hopper():
        pytest.skip("the extension was built without code for sm_90a")
    return torch.ops.fastmtt_hopper


def held_by_tf32(x):
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


@cache
def problem(side, students, images, held=True):
    """a, a_dot, w, w_dot, gamma, gamma_dot, beta, beta_dot; parameters lie apart, and anyhow."""
    make = torch.Generator(DEVICE).manual_seed(side)

    def draw(*shape):
        drawn = torch.randn(shape, device=DEVICE, generator=make)
        return held_by_tf32(drawn) if held else drawn

    count = 9 * WIDTH * WIDTH + 2 * WIDTH
    packed = draw(students, 2 * count + 3)
    found = [draw(students, images, side, side, WIDTH) for _ in range(2)]
    at = 1
    for shape in ((3, 3, WIDTH, WIDTH), (WIDTH,), (WIDTH,)):
        for _ in range(2):
            size = torch.Size(shape).numel()
            found.append(packed[:, at : at + size].view(students, *shape))
            at += size
    return found


def wide(tensors):
    return [t.double() for t in tensors]


def unwritten(*shape):
    return torch.full(shape, torch.nan, device=DEVICE)


def every_plan(ops):
    """All on a GPU, else one of each kind: the host's launch does not look at the rest."""
    for (primal, tangent), side in product(WANTED, hopper.SIDES):
        for plan in ops.plans(primal, tangent, side)[: None if ON_GPU else 1]:
            yield primal, tangent, side, plan


@cache
def block_truth(side, students, images, held=True):
    """p, p_dot, xhat_dot, rstd_dot, xhat, rstd in float64."""
    return reference.conv_block_jvp(*wide(problem(side, students, images, held)), None, None)


def run_block(ops, primal, tangent, plan, given, truth):
    """The results by name, of a call whose results are poisoned before."""
    a, a_dot, w, w_dot, gamma, gamma_dot, beta, beta_dot = given
    p, p_dot, xhat_dot, rstd_dot, xhat, rstd = (unwritten(*t.shape) for t in truth)
    if not tangent:
        ops.conv_block(a, w, gamma, beta, p, xhat, rstd, plan)
        return {"p": p, "xhat": xhat, "rstd": rstd}
    if not primal:
        xhat.copy_(truth[4])
        rstd.copy_(truth[5])
    known = xhat.clone(), rstd.clone()
    places = p, p_dot, xhat_dot, rstd_dot, xhat, rstd
    ops.conv_block_jvp(*given, not primal, *places, plan)
    assert primal or (torch.equal(xhat, known[0]) and torch.equal(rstd, known[1]))
    names = "p", "p_dot", "xhat_dot", "rstd_dot", "xhat", "rstd"
    return dict(zip(names, places, strict=True))


def compare_block(found, truth, leave_out=()):
    names = "p", "p_dot", "xhat_dot", "rstd_dot", "xhat", "rstd"
    for name, want in zip(names, truth, strict=True):
        if name in found and name not in leave_out:
            assert_close(found[name], want, TF32 if name == "p_dot" else TF32_SUM, name)


@pytest.mark.parametrize(("students", "images"), SIZES)
def test_every_plan_gives_the_block_in_equal_bits_each_time(students, images, ops):
    for primal, tangent, side, plan in every_plan(ops):
        given, truth = problem(side, students, images), block_truth(side, students, images)
        first, second = (run_block(ops, primal, tangent, plan, given, truth) for _ in "12")
        compare_block(first, truth)
        assert all(torch.equal(first[name], second[name]) for name in first), plan


@NEEDS_GPU
def test_operands_are_rounded_to_nearest(ops):
    """Cut off, they would err twice as much; a ReLU that flips makes too much of it in p_dot."""
    for primal, tangent, side, plan in every_plan(ops):
        given, truth = problem(side, 2, 5, held=False), block_truth(side, 2, 5, held=False)
        found = run_block(ops, primal, tangent, plan, given, truth)
        compare_block(found, truth, leave_out=["p_dot"])


def convolved(a, w, transposed):
    """The convolution or its input gradient, student by student."""
    function = torch.conv_transpose2d if transposed else torch.conv2d
    found = [
        function(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), padding=1)
        for x, k in zip(a, w, strict=True)
    ]
    return torch.stack(found).permute(0, 1, 3, 4, 2)


@cache
def convolution_truth(side, students, images, transposed):
    a, a_dot, w, w_dot = wide(problem(side, students, images)[:4])
    out_dot = convolved(a, w_dot, transposed) + convolved(a_dot, w, transposed)
    return convolved(a, w, transposed), out_dot


def run_convolution(ops, primal, tangent, plan, given, transposed):
    a, a_dot, w, w_dot = given[:4]
    places = [unwritten(*a.shape) if wanted else None for wanted in (primal, tangent)]
    dots = (a_dot, w_dot) if tangent else (None, None)
    ops.convolution(a, dots[0], w, dots[1], transposed, *places, plan)
    return places


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("students", "images"), SIZES)
def test_every_plan_gives_the_convolution_in_equal_bits_each_time(
    students, images, transposed, ops
):
    for primal, tangent, side, plan in every_plan(ops):
        call = primal, tangent, plan, problem(side, students, images), transposed
        first, second = run_convolution(ops, *call), run_convolution(ops, *call)
        truth = convolution_truth(side, students, images, transposed)
        for got, again, want in zip(first, second, truth, strict=True):
            if got is not None:
                assert_close(got, want, TF32_SUM, f"plan {plan}")
                assert torch.equal(got, again), plan


def test_no_bit_depends_on_alignment_of_parameters_nor_on_the_first_thread(ops, monkeypatch):
    given, truth = problem(8, 2, 1), block_truth(8, 2, 1)
    dense = [*given[:2], *(t.contiguous() for t in given[2:])]
    plan = ops.plans(True, True, 8)[0]
    want = run_block(ops, True, True, plan, dense, truth)
    monkeypatch.setenv("FASTMTT_BACKWARDS", "1")  # of the host, whose memory has ends
    found = run_block(ops, True, True, plan, given, truth)
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_without_images_nothing_is_written(ops):
    a, w = unwritten(2, 0, 8, 8, WIDTH), problem(8, 2, 1)[2]
    ops.convolution(a, None, w, None, False, torch.empty_like(a), None, ops.plans(1, 0, 8)[0])


def test_what_is_refused(ops):
    a, a_dot, w, w_dot, gamma, _, beta, _ = problem(8, 2, 1)
    plan = ops.plans(True, False, 8)[0]
    place = torch.empty_like(a)
    call = a, None, w, None, False, place, None, plan

    def refused(words, at, wrong):
        with pytest.raises(RuntimeError, match=f"fastmtt.*{words}"):
            ops.convolution(*call[:at], wrong, *call[at + 1 :])

    refused("a must have shape", 0, a[..., :64])
    refused("a must have shape", 0, a[:, :, :4])
    refused("w must be a float32 tensor of shape", 2, w[:1])
    refused("w must be a float32 tensor of shape", 2, w.double())
    refused("w must be contiguous for each student", 2, w.mT)
    refused("out must be a float32 tensor", 5, place.double())
    refused("out must be contiguous", 5, place.transpose(2, 3))
    refused("out must not lie in the memory of a", 5, a)
    refused("must be given together", 1, a_dot)
    refused("neither primal nor tangent", 5, None)
    for wrong in (-1, 99, ops.plans(True, False, 16)[0], ops.plans(True, True, 8)[0]):
        refused(f"plan {wrong} is not for this call on planes of side 8", 7, wrong)
    shifted = torch.empty(a.numel() + 1, device=DEVICE)[1:].view(a.shape)
    refused("a must be contiguous and begin at a multiple of 16 bytes", 0, shifted)
    small = torch.empty(2, 1, 4, 4, WIDTH, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"convolution: w_dot must be a float32 tensor"):
        ops.convolution(a, a_dot, w, w_dot[:1], False, place, place, ops.plans(1, 1, 8)[0])
    with pytest.raises(RuntimeError, match=r"conv_block: rstd must be a float32 tensor of shape"):
        ops.conv_block(a, w, gamma, beta, small, place, gamma, plan)


@NEEDS_GPU
def test_a_graph_repeats_a_call_on_what_its_arguments_hold_then(ops):
    a, _, w, *_ = [t.clone() for t in problem(16, 2, 3)]
    place, plan = unwritten(*a.shape), ops.plans(True, False, 16)[0]
    ops.convolution(a, None, w, None, False, place, None, plan)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.convolution(a, None, w, None, False, place, None, plan)
    a.neg_()
    w.mul_(2)
    graph.replay()
    want = -2 * convolution_truth(16, 2, 3, False)[0]
    assert_close(place, want, TF32_SUM)


class TestThroughTheKernels:
    """What calls of ``fastmtt.kernels`` give if the tuner always takes these."""

    @pytest.fixture(autouse=True)
    def always(self, ops, monkeypatch):
        self.taken = []

        def choose(name, key, configs, run):
            """Run all of them, end with the last."""
            own = [config for config in configs if hopper.serves(config)]
            for config in own:
                run(config)
            self.taken += [name] * len(own)
            return (own or configs)[-1]

        for name in ("conv_block", "conv_block_jvp", "convolution"):
            module = __import__(f"fastmtt.kernels.{name}", fromlist=["choose"])
            monkeypatch.setattr(module, "choose", choose)
        monkeypatch.setattr(kernels.precision, "of", lambda *given: "tf32")
        if not ON_GPU:
            monkeypatch.setattr(hopper, "_ops", lambda: ops)
            monkeypatch.setattr(hopper, "on_hopper", lambda t: True)

    def test_block(self):
        a, _, w, _, gamma, _, beta, _ = problem(8, 2, 3)
        found = kernels.conv_block(a, w, gamma, beta)
        for got, at in zip(found, (0, 4, 5), strict=True):
            assert_close(got, block_truth(8, 2, 3)[at], TF32_SUM)
        assert self.taken == ["conv_block"] * 3

    @pytest.mark.parametrize("given", [False, True])
    def test_tangent_of_the_block(self, given):
        truth = block_truth(8, 2, 3)
        known = [t.float() for t in truth[4:]] if given else [None, None]
        found = kernels.conv_block_jvp(*problem(8, 2, 3), *known)
        for got, want in zip(found[: 4 if given else 6], truth, strict=False):
            assert_close(got, want, TF32)
        assert self.taken == ["conv_block_jvp"] * (2 if given else 3)

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize(("primal", "tangent"), WANTED)
    def test_convolution(self, primal, tangent, transposed):
        a, a_dot, w, w_dot = problem(8, 2, 3)[:4]
        out, out_dot = (unwritten(*a.shape) if wanted else None for wanted in (primal, tangent))
        module = kernels.convolution
        if tangent:
            dots = a_dot, w, w_dot
            module.convolve_tangent(a, *dots, out, out_dot, "tf32", transposed=transposed)
        else:
            module.convolve(a, w, out, "tf32", transposed=transposed)
        truth = convolution_truth(8, 2, 3, transposed)
        for got, want in zip((out, out_dot), truth, strict=True):
            if got is not None:
                assert_close(got, want, TF32_SUM)
        assert set(self.taken) == {"convolution"}


class TestDecisions:
    """What :func:`fastmtt.kernels.hopper.plans` looks at."""

    @pytest.fixture(autouse=True)
    def hopper_gpu(self, ops, monkeypatch):
        monkeypatch.setattr(hopper, "_ops", lambda: ops)
        monkeypatch.setattr(hopper, "on_hopper", lambda t: True)

    def plans(self, *activations, precision="tf32"):
        return hopper.plans(activations, precision, primal=True, tangent=False)

    def test_sizes_and_precision(self):
        for side, count in ((8, 3), (16, 1)):
            a = torch.empty(1, 1, side, side, WIDTH, device=DEVICE)
            offered = self.plans(a, None)
            assert len(offered) == count and all(map(hopper.serves, offered))
            assert len({str(config) for config in offered}) == count
            assert self.plans(a, precision="ieee") == self.plans(a, precision="bf16") == []
            assert self.plans(a, a[..., :64]) == self.plans(a, a[:, :, 1:]) == []
        assert self.plans(torch.empty(1, 1, 32, 32, WIDTH, device=DEVICE)) == []
        assert self.plans(torch.empty(1, 1, 8, 16, WIDTH, device=DEVICE)) == []

    def test_memory_that_copies_cannot_begin_at(self):
        a = torch.empty(1, 1, 8, 8, WIDTH, device=DEVICE)
        shifted = torch.empty(a.numel() + 1, device=DEVICE)[1:].view(a.shape)
        assert self.plans(a) and self.plans(a, shifted) == []


@pytest.mark.parametrize(
    ("built", "capability", "served"),
    [(True, (9, 0), True), (False, (9, 0), False), (True, (10, 0), False), (True, (8, 9), False)],
)
def test_only_where_the_build_has_them_on_capability_9_0(built, capability, served, monkeypatch):
    class OnGpu:
        is_cuda, device = True, "cuda:0"

    monkeypatch.setattr(backends, "hopper", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert hopper.on_hopper(OnGpu()) == served


def test_nothing_on_a_cpu():
    a = torch.empty(1, 1, 8, 8, WIDTH)
    assert hopper.plans([a], "tf32", primal=True, tangent=False) == []
