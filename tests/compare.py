"""Comparing whole vectors, with the numbers in the message."""

import torch


def relative_error(got, want):
    """|got - want| / |want| over all entries, in float64; NaN in `got` is an infinite error."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape, f"shape {list(got.shape)}, wanted {list(want.shape)}"
    error = (got - want).norm() / want.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return float("inf") if error.isnan() else error.item()


def assert_close(got, want, tolerance, what="result"):
    """Within a tolerance of :mod:`tolerances`, and not because there is nothing to compare."""
    assert want.detach().norm() > 0, f"{what}: the expected vector is zero, nothing is tested"
    error = relative_error(got, want)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def assert_all_close(got, want, tolerance):
    """The same for dictionaries of vectors."""
    assert got.keys() == want.keys()
    for name in want:
        assert_close(got[name], want[name], tolerance, name)
