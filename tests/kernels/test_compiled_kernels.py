"""The Triton kernels compiled ahead of time for compute capability 8.0 and 9.0, without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compile_kernels import SHARED_KB, TABLE, specimens

SCRIPT = Path(__file__).with_name("compile_kernels.py")


def compiled(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def complaints(result):
    """What is wrong with a compiled kernel, in words."""
    most = SHARED_KB[result["capability"]]
    if result["spilled"]:
        yield f"spills {result['spilled']} bytes a thread"
    if result["shared_kb"] > most:
        yield f"takes {result['shared_kb']:.0f} KB of shared memory, of {most}"
    if result["capability"] == 90 and result["wants_wgmma"] and not result["wgmma"]:
        yield "multiplies without wgmma"


def assert_fit(results):
    assert results
    found = [
        f"{r['name']}, {r['config']}, on {r['capability'] / 10}: {complaint}"
        for r in results
        for complaint in complaints(r)
    ]
    assert not found, "\n".join(found)


def test_each_kernel_fits_a_gpu_without_spills_and_uses_its_matrix_units():
    results = compiled("--one")
    assert {r["capability"] for r in results} == set(SHARED_KB)
    assert any(r["wgmma"] for r in results)
    assert_fit(results)


@pytest.mark.slow
def test_every_configuration_does():
    assert_fit(compiled())


def test_a_name_and_configuration_are_one_specimens():
    keys = [specimen.key for specimen in specimens()]
    assert len(set(keys)) == len(keys)


def test_the_table_lists_what_exists():
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    listed = [(row[0].removeprefix("| "), row[1]) for row in rows[1:]]
    assert listed == [specimen.key for specimen in specimens()], (
        f"{TABLE.name} is not of these kernels: python {SCRIPT.name} --write makes it anew"
    )


def test_a_kernel_too_large_is_complained_of():
    result = {"capability": 80, "spilled": 8, "shared_kb": 200.0, "wants_wgmma": True}
    assert len(list(complaints({**result, "wgmma": False}))) == 2
    assert len(list(complaints({**result, "capability": 90, "wgmma": False}))) == 2
