"""The compiled ConvNet block against the reference, which is plain torch."""

import os
import statistics
import subprocess
import sys

import pytest
import torch
from block_contract import (
    SHAPES,
    BlockOps,
    arguments,
    assert_equal_results,
    away_from_the_kink,
    calls,
    error,
)
from tolerances import FORMULA, REPLAYED_MASKS_32, TIMES_BF16_ROUNDING, TIMES_TORCH, TWO_HALVES

from fastmtt.ops import reference, reference_block

# several groups of channels and of images; more images than one chunk holds
LARGER = [(2, 6, 32, 32, 2, 128), (1, 30, 16, 16, 32, 48)]

pytestmark = pytest.mark.usefixtures("extension")


def compiled(op):
    return getattr(torch.ops.fastmtt, op)


class TestCpu(BlockOps):
    unrounded = TWO_HALVES

    def run(self, op, *args, into=None):
        packet = getattr(torch.ops.fastmtt, op)
        if into is None:
            return packet.default(*args)
        packet.into(*args, *into)
        return tuple(into)


@pytest.mark.parametrize("shape", LARGER)
def test_larger_problems_agree_with_the_reference(shape):
    for op, args in calls(arguments(shape)):
        assert_equal_results(compiled(op)(*args), getattr(reference, op)(*args), FORMULA)


@pytest.mark.parametrize("shape", [SHAPES[3], (1, 2, 32, 32, 8, 64)])
def test_float32_is_as_close_to_float64_as_the_reference_is(shape):
    """Median over seeds, at most twice the reference's error, with float32's masks throughout."""
    ratios = {}
    for seed in range(5):
        narrow = arguments(shape, seed, torch.float32)
        wide = {name: value.double() for name, value in narrow.items()}
        pairs = zip(calls(narrow), calls(wide), strict=True)
        for index, ((op, args), (_, wide_args)) in enumerate(pairs):
            function = getattr(reference, op)
            with reference_block.recorded_masks() as masks:
                own = function(*args)
            with reference_block.replayed_masks(masks):
                truth = function(*wide_args)
            for i, (g, o, t) in enumerate(zip(compiled(op)(*args), own, truth, strict=True)):
                if t.numel():
                    ratio = error(g, t) / max(error(o, t), torch.finfo(torch.float32).eps / 4)
                    ratios.setdefault((op, index, i), []).append(ratio)
    worst = {key: statistics.median(values) for key, values in ratios.items()}
    assert max(worst.values()) <= TIMES_TORCH, worst


@pytest.mark.parametrize("shape", [SHAPES[1], (2, 3, 9, 7, 24, 40), (1, 2, 16, 16, 128, 128)])
def test_winograd_in_float32_with_the_same_masks(shape):
    """From 16 input channels on: absolute, for few channels hide less of the transforms' rounding
    than a network's do; tests/test_precision.py judges the meta-gradient."""
    narrow = arguments(shape, dtype=torch.float32)
    wide = {name: value.double() for name, value in narrow.items()}
    for (op, args), (_, wide_args) in zip(calls(narrow), calls(wide), strict=True):
        with reference_block.recorded_masks() as masks:
            getattr(reference, op)(*args)
        with reference_block.replayed_masks(masks):
            truth = getattr(reference, op)(*wide_args)
        for got, want in zip(compiled(op)(*args), truth, strict=True):
            assert error(got, want) <= REPLAYED_MASKS_32


@pytest.mark.parametrize("shape", [SHAPES[1], LARGER[1], (2, 3, 9, 7, 24, 40)])
def test_bf16_errs_as_bfloat16_does(shape):
    """In norm, by what the reference's rounding costs; tests/test_precision.py judges the
    meta-gradient."""
    narrow = away_from_the_kink(shape)
    wide = {name: value.double() for name, value in narrow.items()}
    for (op, args), (_, wide_args) in zip(calls(narrow), calls(wide), strict=True):
        rounded, truth = getattr(reference, op)(*args, True), getattr(reference, op)(*wide_args)
        for got, own, want in zip(compiled(op)(*args, True), rounded, truth, strict=True):
            off, allowed = (got - want).norm(), TIMES_BF16_ROUNDING * (own - want).norm()
            assert off <= allowed + REPLAYED_MASKS_32 * want.norm(), (op, off / allowed)


@pytest.mark.parametrize("shape", [(1, 2, 32, 32, 3, 128), (2, 3, 9, 7, 5, 40)])
def test_bf16_of_few_channels_is_right_to_16_bits(shape):
    narrow = away_from_the_kink(shape)
    wide = {name: value.double() for name, value in narrow.items()}
    for (op, args), (_, wide_args) in zip(calls(narrow), calls(wide), strict=True):
        for got, want in zip(
            compiled(op)(*args, True), getattr(reference, op)(*wide_args), strict=True
        ):
            assert (got - want).norm() <= TWO_HALVES * want.norm(), op


def test_scratch_may_begin_anywhere():
    v = arguments((1, 2, 6, 6, 3, 20), dtype=torch.float32)
    for op, args in calls(v):
        want = compiled(op)(*args, True)
        places = [torch.empty_like(r) for r in want]
        scratch = torch.empty(1 << 23, dtype=torch.uint8)[1:]
        compiled(op).into(*args, True, *places, scratch)
        assert all(torch.equal(p, w) for p, w in zip(places, want, strict=True)), op


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_of_few_channels_may_be_left_out(dtype):
    """Empty in place of xhat and xhat_dot, as results and as arguments: the same bits."""
    v = arguments((2, 3, 9, 8, 5, 40), dtype=dtype)
    for op, args in calls(v):
        names = [n for n in ("xhat", "xhat_dot", "still_dot") if any(arg is v[n] for arg in args)]
        left_out = [v["a"].new_empty(0) if any(x is v[n] for n in names) else x for x in args]
        whole = compiled(op)(*args)
        places = [
            r.new_empty(0) if r.shape == v["xhat"].shape else torch.full_like(r, -1) for r in whole
        ]
        compiled(op).into(*left_out, False, *places)
        for got, want in zip(places, whole, strict=True):
            assert torch.equal(got, want) or got.shape == (0,), op


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 20, 33, 32, 3, 64), (1, 40, 17, 16, 40, 72), (2, 3, 9, 8, 40, 90)]
)
def test_no_bit_depends_on_the_number_of_threads(shape, bf16):
    """Patches and Winograd, each over several chunks of images; few images, by columns with two."""
    v = arguments(shape, dtype=torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = [compiled(op)(*args, bf16) for op, args in calls(v)]
            results.append([result for each in found for result in each])
    finally:
        torch.set_num_threads(threads)
    for one, two, five in zip(*results, strict=True):
        assert torch.equal(one, two) and torch.equal(one, five)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    for op, args in calls(arguments((2, 2, 5, 6, 3, 12), dtype=dtype)):
        torch.library.opcheck(compiled(op).default, tuple(args))


def test_a_process_that_never_set_its_threads_computes_the_same_each_time():
    """A worker asked for the number of threads may say another than the process does, at first."""
    code = (
        "import torch, fastmtt._C; a = torch.randn(1, 5, 8, 8, 64); "
        "w, ones = torch.randn(1, 3, 3, 64, 64), torch.ones(1, 64); "
        "block = torch.ops.fastmtt.conv_block; "
        "first, *more = [block(a, w, ones, ones, False)[0] for _ in range(3)]; "
        "assert all(torch.equal(first, other) for other in more)"
    )
    anew = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", code], check=True, env=anew)
