"""Whatever a GPU's tuner may choose computes the same: each configuration against the reference."""

import pytest
import torch
from compare import assert_close
from fastmtt.kernels import tuning
from triton.runtime.errors import OutOfResources

from fastmtt import kernels, ops
from fastmtt.ops import backends, reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MOST = 10  # no kernel offers more configurations
# tf32 rounds each operand by 2^-11 at most and bfloat16 by 2^-9; what is read is rounded already,
# what is computed on the way is rounded once or twice, and some ReLU then flips.
TOLERANCE = {"tf32": 0.01, "bf16": 0.04}


def rounded(x, precision):
    if precision == "bf16":
        return x.bfloat16().float()
    return ((x.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def arguments(side, c_in, precision):
    """The block's inputs and tangents, in numbers that the precision holds."""
    make = torch.Generator("cuda").manual_seed(0)

    def draw(*shape):
        return rounded(torch.randn(shape, device="cuda", generator=make), precision)

    a, a_dot = draw(2, 3, side, side, c_in), None if c_in == 3 else draw(2, 3, side, side, c_in)
    w, w_dot = (draw(2, 3, 3, c_in, 128) for _ in range(2))
    gamma, gamma_dot, beta, beta_dot = (draw(2, 128) for _ in range(4))
    gp, gp_dot = (draw(2, 3, side // 2, side // 2, 128) for _ in range(2))
    primal = a, w, gamma, beta
    _, xhat, rstd = reference.conv_block(*primal)
    tangent = a, a_dot, w, w_dot, gamma, gamma_dot, beta, beta_dot
    xhat_dot, rstd_dot = reference.conv_block_jvp(*tangent, xhat, rstd)[2:4]
    known = xhat, rstd, xhat_dot, rstd_dot
    moves = c_in != 3
    return {
        "conv_block": primal,
        "conv_block_jvp": (*tangent, None, None),
        "conv_block_backward": (gp, *primal, xhat, rstd, (moves, True)),
        "conv_block_backward_jvp": (gp, gp_dot, *tangent[:7], *known, (True, True, moves)),
    }


@pytest.mark.parametrize("op", ["conv_block", "conv_block_jvp", "conv_block_backward",
                                "conv_block_backward_jvp"])  # fmt: skip
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize(("side", "c_in"), [(32, 3), (16, 128), (8, 128)])
def test_it_agrees_with_float64(side, c_in, precision, op, monkeypatch):
    args = arguments(side, c_in, precision)[op]
    wide = [t.double() if torch.is_tensor(t) else t for t in args]
    truth = getattr(reference, op)(*wide)
    tried = set()
    for turn in range(MOST):

        def take(name, configs, run, turn=turn):
            """The turn's configuration if there is room for it, else the one after."""
            for place in range(turn, turn + len(configs)):
                config = configs[place % len(configs)]
                try:
                    run(config)
                except OutOfResources:
                    continue
                tried.add((name, str(config)))
                return config
            raise AssertionError(f"no configuration of {name} fits")

        tuning._choices().clear()
        monkeypatch.setattr(tuning, "_fastest", take)
        before = len(tried)
        with ops.use("triton", "tf32"):
            found = getattr(kernels, op)(*args, precision == "bf16")
        if len(tried) == before:  # all have had their turn
            break
        for place, (got, want) in enumerate(zip(found, truth, strict=True)):
            if want.numel():
                what = f"{op}'s result {place} in the configurations of turn {turn}"
                assert_close(got, want, TOLERANCE[precision], what)
    tuning._choices().clear()
    assert tried
    own = backends.hopper() and torch.cuda.get_device_capability() == (9, 0)
    if own and precision == "tf32" and c_in == 128:
        assert any("HOPPER" in config for _, config in tried)
