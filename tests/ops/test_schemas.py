"""Every declared op: opcheck, and one contract in C++, in the reference and in fastmtt.ops."""

import inspect

import pytest
import torch
from samples import samples

from fastmtt import ops
from fastmtt.ops import backends, reference

OPS = reference.__all__

pytestmark = pytest.mark.usefixtures("extension")


def test_declared_ops_are_those_of_the_reference():
    assert backends.extension_error() is None
    names = torch._C._dispatch_get_all_op_names()
    declared = {name.removeprefix("fastmtt::") for name in names if name.startswith("fastmtt::")}
    assert declared == set(OPS) == set(ops.__all__) - {"use"}


@pytest.mark.parametrize("op", OPS)
def test_schema_names_the_reference_arguments(op):
    schema = getattr(torch.ops.fastmtt, op).default._schema
    signature = inspect.signature(getattr(reference, op))
    assert [a.name for a in schema.arguments] == list(signature.parameters)


@pytest.mark.parametrize("op", OPS)
def test_opcheck_in_full(op):
    torch.library.opcheck(getattr(torch.ops.fastmtt, op).default, samples(op)[0])


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
