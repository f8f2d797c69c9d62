"""The two verbs of both students against torch.func, one student at a time."""

import itertools
import math

import naive
import networks
import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from tolerances import FORMULA
from torch import nn

from fastmtt.ops import backends
from fastmtt.student import ConvNetStudent, ModuleStudent, Tape, make_student, parts
from fastmtt.student.zoo import ConvNet

NETWORKS = {
    "depth 1": (lambda: ConvNet((3, 8, 7), 4, depth=1, width=5), (3, 8, 7)),
    "depth 3": (lambda: ConvNet((3, 16, 16), 4, depth=3, width=8), (3, 16, 16)),
    "28x28": (lambda: ConvNet((1, 28, 28), 4, depth=2, width=2), (1, 28, 28)),
    "AlexNet": (lambda: networks.AlexNet(4), (3, 16, 16)),
    "MLP": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh()), (3, 2, 2)),
}


def softened(logits, labels):
    return (logits.log_softmax(-1).exp() - labels).abs().pow(3).sum(-1).mean()


def linear(logits, labels):
    return (logits * labels).sum()


LOSSES = {"hard": None, "soft": None, "softened": softened, "linear": linear}
BOTH = pytest.mark.parametrize("network", NETWORKS)
EVERY = pytest.mark.parametrize("kind", LOSSES)


class Case:
    """A student of two weight vectors, its inputs and torch.func's answers."""

    def __init__(self, network, kind="soft"):
        make, shape = NETWORKS[network]
        self.module = networks.seeded(make)
        self.student = make_student(self.module, shape, LOSSES[kind])
        self.loss_fn = LOSSES[kind] or F.cross_entropy
        random = torch.Generator().manual_seed(3)

        def normal(*size):
            return torch.randn(size, generator=random, dtype=torch.float64)

        self.flat = naive.flat_weights(self.module) + 0.1 * normal(2, self.student.size)
        self.x = normal(2, 3, *shape)
        self.y = normal(2, 3, 4).softmax(-1)
        if kind == "hard":
            self.y = self.y.argmax(-1)
        self.v = normal(2, self.student.size)
        self.theta = self.student.pack(self.flat)

    def loss(self, flat, x, y):
        return self.loss_fn(naive.outputs(self.module, flat, x), y)

    def gradients(self, flat, x, y):
        """Of the loss in the weights, the images and, if they are numbers, the labels."""
        wanted = (0, 1, 2) if y.is_floating_point() else (0, 1)
        return torch.func.grad(self.loss, wanted)(flat, x, y)


@EVERY
@BOTH
def test_gradient(network, kind):
    c = Case(network, kind)
    loss, gradient = c.student.gradient(c.theta, c.x, c.y)
    assert not gradient.requires_grad
    for s in range(2):
        assert_close(loss[s], c.loss(c.flat[s], c.x[s], c.y[s]), FORMULA, "loss")
        want = c.gradients(c.flat[s], c.x[s], c.y[s])[0]
        assert_close(c.student.unpack(gradient)[s], want, FORMULA, "gradient")


@EVERY
@BOTH
def test_tangent(network, kind):
    c = Case(network, kind)
    got = c.student.tangent(c.student.pack(c.v), c.theta, c.x, c.y)
    assert (got[2] is None) == (kind == "hard")
    for s in range(2):
        _, want = torch.func.jvp(
            lambda flat, s=s: c.gradients(flat, c.x[s], c.y[s]), (c.flat[s],), (c.v[s],)
        )
        found = (c.student.unpack(got[0])[s], got[1][s], *([] if kind == "hard" else [got[2][s]]))
        for name, f, w in zip(("Hv", "dx", "dy")[: len(want)], found, want, strict=True):
            assert_close(f, w, FORMULA, name)


@BOTH
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_needs(network, kind):
    c = Case(network, kind)
    v = c.student.pack(c.v)
    everything = c.student.tangent(v, c.theta, c.x, c.y)
    for size in range(4):
        for needs in itertools.combinations(("theta", "x", "y"), size):
            got = c.student.tangent(v, c.theta, c.x, c.y, needs=frozenset(needs))
            for name, g, whole in zip(("theta", "x", "y"), got, everything, strict=True):
                if name in needs and whole is not None:
                    assert_close(g, whole, FORMULA, name)
                else:
                    assert g is None


@BOTH
def test_logits(network):
    c = Case(network)
    got = c.student.logits(c.theta.requires_grad_(), c.x)
    assert got.shape == (2, 3, 4) and not got.requires_grad
    for s in range(2):
        assert_close(got[s], naive.outputs(c.module, c.flat[s], c.x[s]), FORMULA)


def test_a_loss_linear_in_everything_wanted():
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    student = ModuleStudent(module, linear)
    theta, x = torch.randn(1, student.size).double(), torch.randn(1, 2, 3, 2, 2).double()
    hv, dx, dy = student.tangent(theta, theta, x, torch.ones(1, 2, 4).double(), needs={"theta"})
    assert torch.equal(hv, torch.zeros_like(theta)) and dx is dy is None


@pytest.mark.parametrize("network", ["depth 1", "depth 3", "28x28"])
@pytest.mark.parametrize("needs", [{"theta", "x", "y"}, {"x"}, {"theta"}])
def test_every_tape_gives_the_same_bits(network, needs):
    c = Case(network)
    v = c.student.pack(c.v)
    want = c.student.tangent(v, c.theta, c.x, c.y, None, needs)
    keys = [option.key for option in c.student.tape_options(c.x[0])]
    later = c.student.structure.channels[1:-1]  # what blocks after the first take
    left_out = [width for width in later if backends.without_outputs(width, c.x)]
    assert len(keys) == 2 * len(later) - len(left_out)
    for size in range(len(keys) + 1):
        for keep in itertools.combinations(keys, size):
            tape = Tape(frozenset(keep))
            c.student.gradient(c.theta, c.x, c.y, tape)
            got = c.student.tangent(v, c.theta, c.x, c.y, tape, needs)
            for g, w in zip(got, want, strict=True):
                assert g is w is None or torch.equal(g, w)


@pytest.mark.parametrize("network", ["depth 1", "depth 3", "28x28"])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_batch_in_parts_is_the_batch(network, kind, monkeypatch):
    """Three images as two and one: the verbs of the whole batch, the same bits for every tape."""
    c = Case(network, kind)
    v = c.student.pack(c.v)
    whole = [*c.student.gradient(c.theta, c.x, c.y), *c.student.tangent(v, c.theta, c.x, c.y)]
    outputs = c.student.logits(c.theta, c.x)
    plane = [*c.student._images(c.x).shape[2:4], c.student.structure.channels[1], 8]
    monkeypatch.setattr(parts, "_PART_BYTES", 2 * math.prod(plane))
    assert [part.weight for part in c.student._parts(c.x)] == [2 / 3, 1 / 3]
    in_parts = [*c.student.gradient(c.theta, c.x, c.y), *c.student.tangent(v, c.theta, c.x, c.y)]
    for got, want in zip(in_parts, whole, strict=True):
        assert got is want is None or assert_close(got, want, FORMULA) is None
    assert_close(c.student.logits(c.theta, c.x), outputs, FORMULA)
    tape = Tape(frozenset(option.key for option in c.student.tape_options(c.x[0])))
    c.student.gradient(c.theta, c.x, c.y, tape)
    kept = c.student.tangent(v, c.theta, c.x, c.y, tape)
    for got, want in zip(kept, in_parts[2:], strict=True):
        assert got is want is None or torch.equal(got, want)


def test_tape_options_of_the_standard_convnet_save_what_a_table_by_hand_says():
    net = ConvNet((3, 32, 32), 10)
    student = make_student(net, (3, 32, 32))
    options = {o.key: o for o in student.tape_options(torch.empty(3, 32, 32))}
    pooled = options["gp", 0].bytes + options["gp", 1].bytes
    normalised = options["xhat", 1].bytes + options["xhat", 2].bytes
    assert round(pooled / 1000) == 164 and round(normalised / 1000) in (164, 165)  # plus 1/std
    assert pooled == 4 * 128 * (16 * 16 + 8 * 8)
    spared = options["gp", 0].flops + options["gp", 1].flops
    forward = 2 * 9 * (3 * 128 * 32 * 32 + 128 * 128 * (16 * 16 + 8 * 8)) + 2 * 2048 * 10
    assert abs(spared / forward - 0.93) < 0.005 and abs(forward / 1e9 - 0.1015) < 1e-4


def test_only_exact_members_of_the_family_become_convnets():
    kinds = {name: type(Case(name).student) for name in NETWORKS}
    assert {n for n, kind in kinds.items() if kind is ConvNetStudent} == {
        "depth 1",
        "depth 3",
        "28x28",
    }


IMPURE = [
    (nn.BatchNorm2d(3), "BatchNorm2d in training mode.*use GroupNorm"),
    (nn.InstanceNorm2d(3, track_running_stats=True), "InstanceNorm2d in training mode"),
    (nn.BatchNorm2d(3, track_running_stats=False), "BatchNorm2d in training mode"),
    (nn.Dropout2d(0.1), "Dropout2d in training mode, which draws anew"),
    (nn.AlphaDropout(0.1), "AlphaDropout"),
]


@pytest.mark.parametrize(("layer", "message"), IMPURE)
def test_modules_that_are_no_functions_are_refused_in_training_mode(layer, message):
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match=message):
        make_student(net, (3, 2, 2))
    make_student(net.eval(), (3, 2, 2))


def test_harmless_relatives_are_allowed():
    for layer in (nn.InstanceNorm2d(3), nn.Dropout(0.0), nn.GroupNorm(3, 3)):
        make_student(nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
