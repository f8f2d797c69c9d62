"""Triton's head."""

from importlib import import_module

from head_contract import HeadOps

head = import_module("fastmtt.kernels.linear_xent")  # the package's own linear_xent is the op


class TestTriton(HeadOps):
    def run(self, op, *args, into=None):
        return getattr(head, op)(*args, into=into)

    def test_what_is_refused(self):
        self.assert_refused(
            {
                "f": (lambda f: f[0], "f and w must be"),
                "w": (lambda w: w[..., :3], r"w must be torch.float32 of shape \[2, 5, 4\]"),
                "b": (lambda b: b[:, :3], "b must be"),
                "f_dot": (lambda f_dot: f_dot[:1], "f_dot must be"),
                "logp": (lambda logp: logp.double(), "logp must be"),
                "logp_dot": (lambda logp_dot: logp_dot[0], "logp_dot must be"),
                "y": (lambda y: y.int(), "y must be int64"),
            }
        )
