"""Every compiled kernel against the reference."""

import pytest
import torch
from compare import relative_error
from samples import samples
from tolerances import FORMULA, ROUNDING_32, TIMES_TORCH

from fastmtt.ops import backends, reference

COMPILED = [op for op in reference.__all__ if backends.compiled(op)]

pytestmark = pytest.mark.usefixtures("extension")


def results(function, arguments):
    found = function(*arguments)
    return found if isinstance(found, tuple) else (found,)


def in_single(arguments):
    return tuple(
        a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments
    )


def test_there_are_compiled_ops():
    assert COMPILED


@pytest.mark.parametrize("op", COMPILED)
def test_float64(op):
    for arguments in samples(op):
        got = results(getattr(torch.ops.fastmtt, op), arguments)
        want = results(getattr(reference, op), arguments)
        for g, w in zip(got, want, strict=True):
            assert g.dtype == w.dtype
            assert relative_error(g, w) <= FORMULA


@pytest.mark.parametrize("op", COMPILED)
def test_float32_errs_little_more_than_torch(op):
    for arguments in samples(op):
        truth = results(getattr(reference, op), arguments)
        torchs = results(getattr(reference, op), in_single(arguments))
        ours = results(getattr(torch.ops.fastmtt, op), in_single(arguments))
        for t, plain, got in zip(truth, torchs, ours, strict=True):
            assert got.dtype == torch.float32
            allowed = TIMES_TORCH * relative_error(plain, t) + ROUNDING_32
            assert relative_error(got, t) <= allowed
