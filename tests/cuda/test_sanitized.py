"""The kernels on the host under the address and undefined-behaviour sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiling import host_flags

HERE = Path(__file__).parent
FILES = sorted(str(file) for file in HERE.glob("test_*_cuda.py"))
# Each dtype and both orders of threads, without a second look at the same memory.
KERNELS = "agree or order_of_threads or alignment or company or not_asked or bounds"


def libraries():
    """The sanitizers' own, which must be loaded before Python's."""
    names = ("libasan.so", "libstdc++.so")
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++ and its sanitizers")
    found = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    if not all(Path(file).is_absolute() for file in found):
        pytest.skip(f"g++ has no {' or '.join(names)}")
    return " ".join(found)


def run(*arguments):
    environment = {
        **os.environ,
        "FASTMTT_SANITIZE": "1",
        "LD_PRELOAD": libraries(),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.usefixtures("extension")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels, not the host")
def test_the_kernels_stay_within_their_memory():
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", KERNELS, *FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout


@pytest.mark.slow
def test_the_sanitizers_are_on(tmp_path):
    """A program with the flags of the host build that reads beyond its memory is stopped."""
    source, made = tmp_path / "beyond.cpp", tmp_path / "beyond"
    source.write_text("int main(int n, char**) { int* p = new int[4]; return p[n + 3]; }\n")
    subprocess.run(["g++", *host_flags(True), source, "-o", made], check=True)
    done = subprocess.run([made], capture_output=True, text=True)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr
