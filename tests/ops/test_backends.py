"""Which backend serves: chosen, forced, fallen back from, absent."""

import logging

import pytest
import torch

from fastmtt import FastmttError, kernels, ops
from fastmtt.ops import backends, reference

THETA = torch.ones(2, 3)
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")


@pytest.fixture
def spied(monkeypatch):
    """Names of the backends that ran sgd_update, in order."""
    ran = []
    plain, compiled = reference.sgd_update, backends._compiled_op

    def by_reference(*args):
        ran.append("reference")
        return plain(*args)

    def by_kernel(*form):
        ran.append("cpu")
        return compiled(*form)

    monkeypatch.setattr(reference, "sgd_update", by_reference)
    monkeypatch.setattr(backends, "_compiled_op", by_kernel)
    monkeypatch.delenv("FASTMTT_BACKEND", raising=False)
    return ran


def update(dtype=torch.float32):
    return ops.sgd_update(THETA.to(dtype), THETA.to(dtype), torch.tensor(0.1, dtype=dtype))


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(backends, "extension_error", lambda: "the extension is not built")
    monkeypatch.setattr(backends, "compiled", lambda *_: False)


@pytest.mark.usefixtures("extension")
def test_compiled_kernels_are_chosen_and_reference_can_be_forced(spied, monkeypatch):
    update()
    with ops.use("reference"):
        update()
        with ops.use(None):  # leaves the choice as it is
            update()
        with ops.use("cpu"):
            update()
        update()
    update()
    monkeypatch.setenv("FASTMTT_BACKEND", "reference")
    update()
    with ops.use("cpu"):  # an argument outweighs the environment
        update()
    cpu, plain = "cpu", "reference"
    assert spied == [cpu, plain, plain, cpu, plain, cpu, plain, cpu]


@pytest.mark.usefixtures("extension")
def test_falling_back_says_so_once(spied, caplog):
    backends._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "fastmtt"):
        for _ in range(3):
            assert update(torch.bfloat16).dtype == torch.bfloat16
    assert spied == ["reference"] * 3
    assert [record.message for record in caplog.records] == [
        "sgd_update: the compiled kernel cannot serve (it works in float32 and float64, this "
        "tensor is torch.bfloat16); plain torch does"
    ]


@pytest.mark.usefixtures("extension")
def test_a_forced_backend_that_cannot_serve_raises(spied):
    with ops.use("cpu"):
        with pytest.raises(
            FastmttError, match="'cpu' cannot serve sgd_update: it works in float32"
        ):
            update(torch.bfloat16)
        meta = torch.empty(2, 3, device="meta")
        with pytest.raises(FastmttError, match="it works on CPU tensors, this one is on meta"):
            ops.dot(meta, meta)
    assert spied == []


@pytest.mark.usefixtures("extension")
def test_ops_without_a_kernel_come_from_the_reference_even_if_forced(monkeypatch):
    monkeypatch.setattr(backends, "compiled", lambda *_: False)
    with ops.use("cpu"):
        assert torch.equal(ops.dot(THETA, THETA), torch.tensor([3.0, 3.0]))


@pytest.mark.usefixtures("without_extension")
@WITHOUT_GPU
def test_without_the_extension_the_reference_serves(spied):
    update()
    assert spied == ["reference"]
    assert {row.backend for row in backends.table()} == {"reference"}
    with (
        ops.use("cpu"),
        pytest.raises(FastmttError, match="'cpu' was asked for, but the extension is not built"),
    ):
        update()


@pytest.mark.parametrize("name", ["CUDA", "CPU", "auto", "Triton"])
def test_unknown_backends(name, monkeypatch):
    message = f"backend '{name}' is not known; known are reference, cpu, triton, cuda"
    with pytest.raises(FastmttError, match=message), ops.use(name):
        pass
    monkeypatch.setenv("FASTMTT_BACKEND", name)
    with pytest.raises(FastmttError, match=message):
        ops.dot(THETA, THETA)


def test_an_error_inside_leaves_no_backend_forced():
    before = backends.forced()
    with pytest.raises(ZeroDivisionError), ops.use("reference"):
        raise ZeroDivisionError
    assert backends.forced() == before


@WITHOUT_GPU
def test_table_names_every_op_and_why(monkeypatch):
    assert [row.op for row in backends.table()] == reference.__all__
    for row in backends.table():
        assert row.backend == ("cpu" if backends.compiled(row.op) else "reference") and row.reason
    monkeypatch.setenv("FASTMTT_BACKEND", "reference")
    assert {tuple(row[1:]) for row in backends.table()} == {("reference", "forced")}


def test_precision_turns_torchs_switch_for_a_while():
    before = torch.backends.cudnn.allow_tf32
    for precision, want in (("fp32", False), ("tf32", True), ("bf16", before), (None, before)):
        with ops.use(None, precision):
            assert torch.backends.cudnn.allow_tf32 is want
        assert torch.backends.cudnn.allow_tf32 is before


@WITHOUT_GPU
def test_triton_serves_cpu_tensors_only_in_the_interpreter(monkeypatch):
    with (
        ops.use("triton"),
        pytest.raises(FastmttError, match="float32, this tensor is torch.float64"),
    ):
        update(torch.float64)
    monkeypatch.setattr(kernels, "interpreting", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    backends.triton_error.cache_clear()
    with ops.use("triton"), pytest.raises(FastmttError, match="but torch finds no GPU"):
        update()
    backends.triton_error.cache_clear()


@pytest.fixture
def pretended(monkeypatch):
    """Which backends serve tensors on a GPU; here the CPU's are taken for such."""
    reasons = {"triton": None, "cuda": None}
    monkeypatch.setattr(backends, "triton_error", lambda: reasons["triton"])
    monkeypatch.setattr(backends, "cuda_error", lambda: reasons["cuda"])
    monkeypatch.setattr(backends, "compiled", lambda op, device: op != "dsa")
    monkeypatch.setattr(backends, "_kernels", lambda: kernels)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("FASTMTT_BACKEND", raising=False)
    backends._say_once.cache_clear()
    return reasons


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda, is_cpu = True, False


def on_gpu(dtype):
    return torch.ones(2, 3, dtype=dtype).as_subclass(OnGpu)


def test_a_gpus_choice_is_triton_then_cuda_then_plain_torch(pretended, caplog):
    single, double, half = (on_gpu(d) for d in (torch.float32, torch.float64, torch.bfloat16))
    assert backends._serving("dot", (single, single)) == "triton"
    assert backends._serving("dot", (double, double)) == "cuda"
    pretended["triton"] = "Triton's kernels cannot be loaded"
    assert backends._serving("dot", (single, single)) == "cuda"
    assert {row.backend for row in backends.table()} == {"cuda", "reference"}
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "fastmtt"):
        assert backends._serving("dsa", (single,)) == "reference"
        assert backends._serving("dot", (half, half)) == "reference"
    assert [record.message for record in caplog.records] == [
        "dsa: Triton's kernels cannot be loaded; no CUDA kernel; plain torch does",
        "dot: Triton's kernels cannot be loaded; the CUDA kernel cannot serve (it works in float32 "
        "and float64, this tensor is torch.bfloat16); plain torch does",
    ]


def test_cuda_can_be_forced_and_refuses_with_its_reason(pretended):
    with ops.use("cuda"):
        assert backends._serving("dot", (on_gpu(torch.float32),)) == "cuda"
        assert backends._serving("dsa", (on_gpu(torch.float32),)) == "reference"
        assert {row.op for row in backends.table() if row.backend == "reference"} == {"dsa"}
        with pytest.raises(FastmttError, match="a GPU's tensors, this one is on cpu"):
            backends._serving("dot", (THETA,))
        pretended["cuda"] = "torch finds no GPU"
        with pytest.raises(FastmttError, match="'cuda' was asked for, but torch finds no GPU"):
            ops.dot(THETA, THETA)


def test_why_there_is_no_cuda_backend(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for there, reason in ((False, "without CUDA kernels"), (True, "torch finds no GPU")):
        monkeypatch.setattr(backends, "extension_error", lambda: None)
        monkeypatch.setattr(backends, "compiled", lambda op, device, there=there: there)
        backends.cuda_error.cache_clear()
        assert reason in backends.cuda_error()
    backends.cuda_error.cache_clear()
