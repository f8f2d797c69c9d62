"""The tests that matter on a GPU, counted as they come."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.gpu.device import SMOKE
from bench.gpu.results import Row
from bench.machine import ROOT
from fastmtt.ops import backends

TESTS = ("tests/kernels", "tests/cuda", "tests/test_capture.py", "tests/ops/test_backends.py")
COMPILED = "tests/kernels/test_compiled_kernels.py"  # needs no GPU
_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def run(folder: Path, seconds: float) -> Iterator[Row]:
    """One row of counts, and one for each failure; pytest's own words go to ``tests.log``.

    Args:
        folder: of the results.
        seconds: after which what has not run is left out.
    """
    tests = ["tests/test_compat.py"] if SMOKE else [t for t in TESTS if (ROOT / t).exists()]
    command = [sys.executable, "-m", "pytest", *tests, "-v", "-rN", "--tb=short", "-m", "not slow"]
    command += [f"--ignore={COMPILED}", "-p", "no:cacheprovider", "--color=no", "--maxfail=40"]
    if importlib.util.find_spec("xdist") and not SMOKE:
        command += ["-n", "8"]
    log = folder / "tests.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
            ended = {} if code in (0, 1) else {"failed": f"pytest ended with code {code}"}
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            ended = {"failed": f"cut off after {seconds:.0f} seconds"}
    lines = log.read_text(errors="replace").splitlines()
    outcomes = [(match[1], line) for line in lines if (match := _OUTCOME.search(line))]
    counts = Counter(outcome for outcome, _ in outcomes)
    yield {"table": "counts", **{name.lower(): n for name, n in counts.items()}, **ended}
    for outcome, line in outcomes:
        if outcome in ("FAILED", "ERROR"):
            yield {"table": "failures", "failed": line[:200]}


def sanitize(folder: Path, seconds: float) -> Iterator[Row]:
    """The CUDA kernels' tests under compute-sanitizer, a row a tool; its words in ``TOOL.log``.

    Args:
        folder: of the results.
        seconds: that each tool may take.
    """
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        row = {"table": "sanitizer", "tool": tool}
        if (lack := backends.cuda_error()) is not None:
            yield {**row, "failed": lack}
        elif not Path(sanitizer).is_file():
            yield {**row, "failed": "compute-sanitizer is not installed here"}
        else:
            yield {**row, **_under([sanitizer, "--tool", tool], folder / f"{tool}.log", seconds)}


def _under(tool: list[str], log: Path, seconds: float) -> Row:
    tests = [str(path) for path in sorted((ROOT / "tests/cuda").glob("test_*_cuda.py"))]
    command = [*tool, "--error-exitcode", "9", sys.executable, "-m", "pytest", *tests, "-q"]
    with log.open("w") as file:
        try:
            process = subprocess.run(
                [*command, "-k", "agrees or order_of_threads", "-p", "no:cacheprovider"],
                **{"cwd": ROOT, "stdout": file, "stderr": subprocess.STDOUT, "timeout": seconds},
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"cut off after {seconds:.0f} seconds"}
    lines = log.read_text(errors="replace").splitlines()
    told = next((line for line in reversed(lines) if "SUMMARY" in line), "no summary")
    return {"told": told} if process.returncode == 0 else {"failed": told}
