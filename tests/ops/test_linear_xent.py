"""The head: classifier with cross-entropy, its cotangents and their tangents."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from samples import flags, head, logp_of, samples
from tolerances import FORMULA

from fastmtt import ops

pytestmark = pytest.mark.parametrize("soft", [True, False])


def losses(f, w, b, y):
    """Each student's mean cross-entropy by torch's own functions."""
    return torch.stack(
        [
            F.cross_entropy(F.linear(*student[:3]), student[3])
            for student in zip(f, w, b, y, strict=True)
        ]
    )


def cotangents(f, w, b, y):
    inputs = (f, w, b, y) if y.is_floating_point() else (f, w, b)
    rest = () if y.is_floating_point() else (y,)
    return torch.func.grad(lambda *u: losses(*u, *rest).sum(), tuple(range(len(inputs))))(*inputs)


def test_loss_and_log_probabilities(soft):
    u, y, _ = head(soft)
    loss, logp = ops.linear_xent(*u, y)
    assert_close(loss, losses(*u, y), FORMULA, "loss")
    assert_close(logp, logp_of(*u), FORMULA, "logp")


def test_backward(soft):
    (f, w, b), y, _ = head(soft)
    got = ops.linear_xent_backward(f, w, logp_of(f, w, b), y, (True, True))
    for g, c, name in zip(got, cotangents(f, w, b, y), ("gf", "gw", "gb", "gy"), strict=False):
        assert_close(g, c, FORMULA, name)
    assert soft or got[3].shape == (0,)


def test_jvp(soft):
    u, y, v = head(soft)
    _, want = torch.func.jvp(lambda *w: losses(*w, y), tuple(u), tuple(v))
    _, want_logp = torch.func.jvp(logp_of, tuple(u), tuple(v))
    loss_dot, logp_dot = ops.linear_xent_jvp(u[0], v[0], u[1], v[1], v[2], logp_of(*u), y)
    assert_close(loss_dot, want, FORMULA, "loss_dot")
    assert_close(logp_dot, want_logp, FORMULA, "logp_dot")


def test_backward_jvp(soft):
    u, y, v = head(soft)
    primal, want = torch.func.jvp(lambda *w: cotangents(*w, y), tuple(u), tuple(v))
    logp, logp_dot = torch.func.jvp(logp_of, tuple(u), tuple(v))
    got = ops.linear_xent_backward_jvp(
        u[0], v[0], u[1], v[1], logp, logp_dot, y, (True, True, True)
    )
    names = ("gf_dot", "gw_dot", "gb_dot", "gy_dot")
    for g, w, name in zip(got, want, names, strict=False):
        assert_close(g, w, FORMULA, name)
    assert_close(got[4], primal[0], FORMULA, "gf")
    assert soft or got[3].shape == (0,)


@pytest.mark.parametrize("op", ["linear_xent_backward", "linear_xent_backward_jvp"])
def test_what_is_not_needed_comes_back_empty_and_the_rest_is_the_same(soft, op):
    served = {
        "linear_xent_backward": lambda f, p: (f, p, p, soft),
        "linear_xent_backward_jvp": lambda f, p, gf: (f, p, p, soft, gf),
    }[op]
    count = 2 if op == "linear_xent_backward" else 3
    cases = samples(op)[: 2**count] if soft else samples(op)[2**count :]
    assert [arguments[-1] for arguments in cases] == flags(count)
    everything = getattr(ops, op)(*cases[0])
    for arguments in cases[1:]:
        found = getattr(ops, op)(*arguments)
        for got, whole, needed in zip(found, everything, served(*arguments[-1]), strict=True):
            assert torch.equal(got, whole) if needed else got.shape == (0,)
