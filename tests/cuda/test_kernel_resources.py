"""The CUDA kernels compiled by nvcc for every target, without a GPU."""

import re

import pytest
import torch
from kernel_resources import TABLE, Resources, families, measure, release, table

from fastmtt import toolchain


@pytest.fixture
def toolkit():
    try:
        return toolchain.find_cuda(torch.version.cuda)
    except toolchain.NotFoundError as reason:
        pytest.skip(f"no usable CUDA toolkit: {reason}")


@pytest.mark.slow
def test_no_kernel_spills_and_all_are_as_the_table_says(toolkit):
    results = [result for family in families() for result in measure(family)]
    complaints = [complaint for result in results for complaint in result.complaints()]
    assert not complaints, "\n".join(complaints)
    if f"nvcc {release()}." in TABLE.read_text():  # another makes other code
        assert TABLE.read_text() == table(results), (
            f"{TABLE.name} is not of these kernels: python tests/cuda/kernel_resources.py --write"
        )


def test_the_table_lists_every_family():
    rows = re.findall(r"^\| (\w+) \| `", TABLE.read_text(), re.MULTILINE)
    assert sorted(set(rows)) == families()


def test_a_warning_is_an_error(toolkit, tmp_path, monkeypatch):
    monkeypatch.setattr("kernel_resources.CSRC", tmp_path)
    (tmp_path / "lax.cu").write_text("__global__ void lax() { int unused; }\n")
    with pytest.raises(RuntimeError, match="unused"):
        measure("lax")


def test_what_spills_or_shares_too_much_is_complained_of():
    fine = Resources("flat", "Dot<float>", "sm_80", 32, 0, 2048)
    assert list(fine.complaints()) == []
    bad = Resources("flat", "Dot<float>", "sm_80", 255, 8, 2**16)
    assert list(bad.complaints()) == [
        "Dot<float> on sm_80 keeps 8 bytes a thread in memory",
        "Dot<float> on sm_80 shares 65536 bytes, of 49152",
    ]
