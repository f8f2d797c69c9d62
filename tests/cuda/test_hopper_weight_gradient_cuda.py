"""The weight gradient on Hopper: the op on such a GPU, elsewhere the kernel's text on threads."""

import shutil
import subprocess
from functools import cache

import pytest
import torch
from building import ROOT, load_setup
from compare import assert_close
from fastmtt.kernels import hopper, hopper_weight_gradient
from fastmtt.kernels.tuning import Config
from tolerances import ROUNDING_32, TF32_SUM

CSRC, PLAYED = ROOT / "csrc" / "cuda", ROOT / "tests" / "cuda" / "hopper_threads"
CHANNELS = 128
PLANS = range(len(hopper_weight_gradient.SHARES))
SIZES = [(1, 1), (2, 3), (3, 5), (2, 257)]  # of students, of images


@pytest.mark.slow
def test_on_threads_all_but_the_instructions_is_right(tmp_path):
    """Every index, phase and release of all plans; products are done as late as they may be."""
    names = ("hopper_weight_gradient", "hopper_weight_gradient_kernels", "hopper_ring", "kernel")
    for path in (*(CSRC / f"{name}.h" for name in names), *PLAYED.iterdir()):
        shutil.copy(path, tmp_path)
    program = tmp_path / "weight_gradient"
    flags = ["-std=c++20", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-pthread"]
    call = [load_setup().toolchain.find_compiler(), *flags, f"-I{tmp_path}", "-o", program]
    subprocess.run([*call, tmp_path / "weight_gradient.cpp"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    errors = [float(error) for error in done.stdout.split()]
    assert len(errors) == 2 * len(PLANS)
    assert max(errors) < 512 * ROUNDING_32, errors  # of sums of 512 products, themselves exact


@pytest.fixture(scope="module")
def ready(extension):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU, of compute capability 9.0")
    if not hasattr(torch.ops.fastmtt_hopper, "weight_gradient"):
        pytest.skip("the extension was built without code for sm_90a")


@cache
def problem(side, students, images, pairs):
    """Pairs (a, gz), and their weight gradient in float64."""
    make = torch.Generator("cuda").manual_seed(side)
    shape = (students, images, side, side, CHANNELS)
    given = [
        tuple(torch.randn(shape, device="cuda", generator=make) for _ in range(2))
        for _ in range(pairs)
    ]
    want = torch.zeros(students, 3, 3, CHANNELS, CHANNELS, device="cuda", dtype=torch.float64)
    for a, gz in given:
        padded = torch.nn.functional.pad(a.double(), (0, 0, 1, 1, 1, 1))
        right = gz.double().flatten(1, 3)
        for y in range(3):
            for x in range(3):
                left = padded[:, :, y : y + side, x : x + side].flatten(1, 3)
                want[:, y, x] += left.mT @ right
    return given, want.flatten(1)


def found(pairs, plan, count):
    """The op's parts, summed; what it does not write is NaN."""
    (a, gz), second = pairs[0], pairs[1] if len(pairs) == 2 else (None, None)
    parts = a.new_full((a.shape[0], count, 9 * CHANNELS * CHANNELS), torch.nan)
    torch.ops.fastmtt_hopper.weight_gradient(a, gz, *second, plan, parts)
    return parts.double().sum(1)


@pytest.mark.usefixtures("ready")
class TestOnHopper:
    @pytest.mark.parametrize("count", [1, 2, 14])  # some of 14 parts have no image
    @pytest.mark.parametrize("pairs", [1, 2])
    @pytest.mark.parametrize(("students", "images"), SIZES)
    @pytest.mark.parametrize("side", hopper.SIDES)
    @pytest.mark.parametrize("plan", PLANS)
    def test_it_sums_over_all_pixels(self, plan, side, students, images, pairs, count):
        given, want = problem(side, students, images, pairs)
        got = found(given, plan, count)
        assert_close(got, want, TF32_SUM)
        assert torch.equal(got, found(given, plan, count))

    @pytest.mark.parametrize("plan", PLANS)
    def test_as_a_configuration_it_gives_all_parts(self, plan):
        given, want = problem(8, 2, 257, 2)
        parts = hopper_weight_gradient.parts(Config({"HOPPER": plan}), given)
        assert_close(parts.double().sum(1), want, TF32_SUM)

    def test_the_tuner_is_offered_every_plan_where_they_serve(self):
        given, _ = problem(16, 1, 1, 1)
        assert len(hopper_weight_gradient.plans(given, "tf32")) == len(PLANS)
        assert hopper_weight_gradient.plans(given, "ieee") == []
        narrow = [tuple(t[..., :64].contiguous() for t in pair) for pair in given]
        assert hopper_weight_gradient.plans(narrow, "tf32") == []

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"gz": lambda t: t.double()}, "gz must be a contiguous float32 tensor"),
            ({"a": lambda t: t[..., :64]}, r"a must have shape \[S,B,8,8,128\]"),
            ({"parts": lambda t: t[..., :-1]}, "parts must be a contiguous float32 tensor"),
            ({"a_second": lambda t: torch.ones_like(t)}, "must be given together"),
            ({"plan": lambda _: len(PLANS)}, "plan must be of 0"),
        ],
    )
    def test_what_it_cannot_take_is_named(self, wrong, said):
        ((a, gz),), _ = problem(8, 1, 1, 1)
        parts = a.new_empty(1, 1, 9 * CHANNELS * CHANNELS)
        given = {"a": a, "gz": gz, "a_second": None, "gz_second": None, "plan": 0, "parts": parts}
        for name, change in wrong.items():
            given[name] = change(a if given[name] is None else given[name])
        with pytest.raises(RuntimeError, match=said):
            torch.ops.fastmtt_hopper.weight_gradient(*given.values())


def test_nothing_is_offered_for_other_devices():
    a = torch.ones(1, 1, 8, 8, CHANNELS)
    assert hopper_weight_gradient.plans([(a, a)], "tf32") == []


@pytest.mark.parametrize(
    ("strips", "side", "most", "count"),
    [
        (500, 8, 44, 42),  # 12 strips a block at most, as with 44 parts
        (100, 8, 44, 25),  # 28 parts at best, of 4 strips at most
        (1000, 16, 33, 33),
        (1, 8, 44, 1),
        (2, 16, 44, 2),
        (500, 8, 0, 1),  # more students than the GPU has processors
    ],
)
def test_as_many_parts_as_their_sum_is_worth(strips, side, most, count):
    assert hopper_weight_gradient.count_of(strips, side, most) == count
