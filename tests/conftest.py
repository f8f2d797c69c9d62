"""Fixtures every test has."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton's kernels are imported

from fastmtt.ops import backends

pytest.register_assert_rewrite("block_contract", "flat_contract", "head_contract")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tensors here are small: more threads only wait for each other, long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Deterministic mode fills fresh memory with NaN: an element left unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def extension():
    """The compiled ops; where they are missing, the reason to skip, or to fail in CI."""
    missing = backends.extension_error()
    if missing and os.environ.get("FASTMTT_REQUIRE_EXT") == "1":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
