"""Every declared op: opcheck, and one contract in C++, in the reference and in fastmtt.ops."""

import inspect

import pytest
import torch
from samples import samples
from test_into import WRITING

from fastmtt import ops
from fastmtt.ops import backends, reference

OPS = reference.__all__

pytestmark = pytest.mark.usefixtures("extension")


def test_declared_ops_are_those_of_the_reference():
    assert backends.extension_error() is None
    every = torch._C._dispatch_get_all_op_names()
    declared = {name.removeprefix("fastmtt::") for name in every if name.startswith("fastmtt::")}
    names = {name for name in declared if not name.endswith(".into")}
    assert names == set(OPS) == set(ops.__all__) - {"use"}


@pytest.mark.parametrize("op", OPS)
def test_schema_names_the_reference_arguments(op):
    schema = getattr(torch.ops.fastmtt, op).default._schema
    signature = inspect.signature(getattr(reference, op))
    assert [a.name for a in schema.arguments] == list(signature.parameters)


@pytest.mark.parametrize("op", WRITING)
def test_the_form_that_writes_takes_the_results_after_the_arguments(op):
    packet = getattr(torch.ops.fastmtt, op)
    plain, into = packet.default._schema, packet.into._schema
    count = len(plain.arguments)
    assert [a.name for a in into.arguments[:count]] == [a.name for a in plain.arguments]
    results = [r.name or "result" for r in plain.returns]
    assert [a.name for a in into.arguments[count:]][: len(results)] == results
    written = [a.alias_info is not None and a.alias_info.is_write for a in into.arguments]
    assert written == [i >= count for i in range(len(written))]
    assert into.returns == []


@pytest.mark.parametrize("op", OPS)
def test_opcheck_in_full(op):
    torch.library.opcheck(getattr(torch.ops.fastmtt, op).default, samples(op)[0])


@pytest.mark.parametrize("op", WRITING)
def test_opcheck_of_the_form_that_writes(op):
    arguments = samples(op)[0]
    found = getattr(reference, op)(*arguments)
    results = found if isinstance(found, tuple) else (found,)
    given = [torch.full_like(r, 7.0) for r in results]
    torch.library.opcheck(getattr(torch.ops.fastmtt, op).into, (*arguments, *given))


@pytest.mark.parametrize("op", OPS)
def test_opcheck_of_every_case_and_dtype(op):
    fast = ("test_schema", "test_autograd_registration", "test_faketensor")  # tracing takes 0.5 s
    for arguments in samples(op):
        single = tuple(
            a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
            for a in arguments
        )
        for case in (arguments, single):
            overload = getattr(torch.ops.fastmtt, op).default
            torch.library.opcheck(overload, case, test_utils=fast)


@pytest.mark.parametrize("op", OPS)
def test_an_op_with_a_cuda_kernel_has_it_in_both_forms(op):
    if not any(backends.compiled(other, "CUDA") for other in OPS):
        pytest.skip("the extension was built without CUDA kernels")
    overloads = getattr(torch.ops.fastmtt, op).overloads()
    names = [op if name == "default" else f"{op}.{name}" for name in overloads]
    assert len({backends.compiled(name, "CUDA") for name in names}) == 1
