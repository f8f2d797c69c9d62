"""Which ops csrc/cuda has, on the host and in the extension, and that all keep to the schemas."""

import re
import shutil
import subprocess

import pytest
import torch
from compiling import CSRC, device_command
from samples import samples

from fastmtt import toolchain
from fastmtt.ops import backends

# What csrc/cuda registers, in both forms, by its own text.
OPS = sorted(
    op
    for path in CSRC.glob("*_ops.cpp")
    for op in re.findall(r'm\.impl\("(\w+)",', path.read_text())
)


def test_there_are_ops():
    assert {"sgd_update", "dot", "linear_xent"} <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_the_extension_has_what_its_sources_have(op, extension):
    if not any(backends.compiled(other, "CUDA") for other in OPS):
        pytest.skip("the extension was built without CUDA kernels")
    for name in (op, f"{op}.into"):
        assert backends.compiled(name, "CUDA")


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, cuda_ops):
    """Nothing but what the schema says is written, nor returned as another's memory."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for arguments in samples(op):
        here = tuple(a.to(device) if torch.is_tensor(a) else a for a in arguments)
        found = getattr(cuda_ops, op).default(*here)
        results = found if isinstance(found, tuple) else (found,)
        places = [torch.full_like(result, 7.0) for result in results]
        torch.library.opcheck(getattr(cuda_ops, op).default, here, test_utils="test_schema")
        into = (*here, *places)
        torch.library.opcheck(getattr(cuda_ops, op).into, into, test_utils="test_schema")


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(CSRC.glob("*_ops.cpp")), ids=lambda path: path.stem)
def test_the_sources_of_ops_compile_for_a_gpu(source, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    try:
        command = device_command(source)
    except toolchain.NotFoundError as reason:
        pytest.skip(f"no usable CUDA toolkit: {reason}")
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]}")
    assert "-DFASTMTT_SM90A" in command
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
