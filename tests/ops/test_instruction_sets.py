"""The kernels for lesser processors, by the tests of the kernels: PyTorch is told to use less."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmtt import info

SETS = ["DEFAULT", "AVX2", "AVX512"]
HERE = Path(__file__).parent
# Not about numbers, or the reference's time.
LEFT_OUT = "not opcheck and not wrong_arguments and not refused"


@pytest.mark.slow
@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("capability", SETS[:-1])
def test_the_kernels_of(capability):
    here = torch.backends.cpu.get_cpu_capability()
    if here not in SETS or SETS.index(capability) >= SETS.index(here):
        pytest.skip(f"PyTorch uses {here} here")
    run_tests(ATEN_CPU_CAPABILITY=capability.lower())


@pytest.mark.slow
@pytest.mark.usefixtures("extension")
def test_bfloat16_without_tiles():
    if not info.instruction_sets().get("amx_bf16"):
        pytest.skip("this processor has no AMX tiles, so the other tests are without them")
    run_tests(ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16")


def run_tests(**environment):
    files = sorted(str(file) for file in HERE.glob("test_*_cpu.py"))
    files += [str(HERE / "test_flat.py"), str(HERE / "test_gsam.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
    done = subprocess.run(
        [*command, *files], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
