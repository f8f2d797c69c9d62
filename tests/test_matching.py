"""The meta-gradient of the matching loss against autograd's double backward, and its interface."""

import naive
import networks
import published_dsa
import pytest
import torch
import torch.nn.functional as F
from compare import assert_all_close, assert_close
from problems import Problem, meta_gradients
from tolerances import FINITE_DIFFERENCE, META_GRADIENT

import fastmtt
from fastmtt.student import ConvNetStudent, ModuleStudent, make_student
from fastmtt.student.zoo import ConvNet
from fastmtt.synthetic import Synthetic


def convnet(depth, shape=(3, 16, 16), width=4, classes=3):
    return lambda: ConvNet(shape, classes, depth=depth, width=width)


CASES = {
    # depths 1 to 4; odd sizes; one channel with its border; batches that leave a remainder
    "depth 1": (convnet(1, (3, 8, 8)), dict(shape=(3, 8, 8), steps=3, batch=5)),
    "depth 2, odd": (convnet(2, (3, 9, 11)), dict(shape=(3, 9, 11), steps=5, batch=3)),
    "depth 3, S=3": (convnet(3), dict(steps=4, batch=2, segments=3, labels="soft")),
    "depth 4": (convnet(4, width=6), dict(steps=3, labels="unnormalised", lr="per step")),
    "28x28x1": (convnet(2, (1, 28, 28)), dict(shape=(1, 28, 28), steps=2, batch=3)),
    "two channels": (convnet(1, (2, 8, 8)), dict(shape=(2, 8, 8), steps=2, labels="soft")),
    "N=20": (convnet(2, (3, 8, 8)), dict(shape=(3, 8, 8), steps=20, batch=2, labels="soft")),
    "N=20, DSA": (convnet(2, (3, 8, 8)), dict(shape=(3, 8, 8), steps=20, batch=3, dsa="S")),
    "DSA, S=3": (
        convnet(3),
        dict(steps=4, batch=3, segments=3, dsa="S", labels="soft", lr="per step"),
    ),
    "DSA, all in order": (convnet(2), dict(steps=2, batch=3, dsa="M")),
    "foreign class": (
        lambda: networks.PlainConvNet(2, 5, 16),
        dict(steps=3, batch=4, labels="soft"),
    ),
    # any module, by double backward
    "AlexNet": (networks.AlexNet, dict(steps=3, batch=2, segments=3, labels="soft")),
    "AlexNet, DSA": (networks.AlexNet, dict(steps=6, batch=3, dsa="S")),
    "VGG11": (networks.VGG11, dict(shape=(3, 32, 32), steps=3, batch=2)),
    "ResNet18": (networks.ResNet18, dict(shape=(3, 32, 32), steps=3, batch=2, labels="soft")),
    "leaky ReLU": (
        lambda: networks.PlainConvNet(2, 4, 16, relu=lambda: torch.nn.LeakyReLU(0.1)),
        dict(steps=4, batch=2, labels="unnormalised", lr="per step"),
    ),
}
GENERIC = {"AlexNet", "AlexNet, DSA", "VGG11", "ResNet18", "leaky ReLU"}


@pytest.mark.parametrize("case", CASES)
def test_meta_gradient(case):
    make, options = CASES[case]
    p = Problem(make, **options)
    kind = ModuleStudent if case in GENERIC else ConvNetStudent
    assert isinstance(make_student(p.module, p.shape), kind)
    loss, got = p.ours()
    want_loss, want = p.naive()
    assert_close(loss, want_loss, META_GRADIENT, "loss")
    assert_all_close(got, want, META_GRADIENT)


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, label_smoothing=0.2)


def squared(logits, labels):
    return (logits.softmax(-1) - labels).square().sum(-1).mean()


def linear_in_logits(logits, labels):
    return -(logits * labels).mean()


@pytest.mark.parametrize(
    ("loss_fn", "labels"),
    [(smoothed, "hard"), (smoothed, "soft"), (squared, "soft"), (linear_in_logits, "soft")],
)
@pytest.mark.parametrize("make", [convnet(2), networks.AlexNet], ids=["ConvNet", "AlexNet"])
def test_any_loss_function(make, loss_fn, labels):
    p = Problem(make, steps=3, batch=3, labels=labels)
    _, got = p.ours(loss_fn=loss_fn)
    _, want = p.naive(loss_fn=loss_fn)
    assert_all_close(got, want, META_GRADIENT)


def larger_half(squares):
    """PAD's filter: the parameters with the largest squared distances, as a mask."""
    return squares > squares.median()


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("form", ["mask", "indices", "callable", "callable of indices"])
def test_keep(form, segments):
    p = Problem(convnet(2), steps=3, batch=3, segments=segments)
    suffix = torch.arange(p.size) >= int(0.4 * p.size)  # PAD's depth filter, mid-layer
    keep, truth = {
        "mask": (suffix, lambda squares: suffix),
        "indices": (suffix.nonzero()[:, 0], lambda squares: suffix),
        "callable": (larger_half, larger_half),
        "callable of indices": (lambda squares: squares.topk(50).indices,) * 2,
    }[form]
    loss, got = p.ours(keep=keep)
    want_loss, want = p.naive(keep=truth)
    assert_close(loss, want_loss, META_GRADIENT, "loss")
    assert_all_close(got, want, META_GRADIENT)


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("make", [convnet(2), networks.AlexNet], ids=["ConvNet", "AlexNet"])
@pytest.mark.parametrize("dsa", [None, "S"])
def test_tesla_is_the_published_formula(make, labels, dsa):
    p = Problem(make, steps=5, batch=3, labels=labels, dsa=dsa)
    _, got = p.ours(gradient="tesla")
    want = naive.tesla_gradients(p.module, p.given(), p.draws, augment=p.truth)
    assert_all_close({name: got[name] for name in want}, want, META_GRADIENT)


def test_tesla_of_one_step_is_exact_and_of_more_is_not():
    one, more = Problem(convnet(2), steps=1), Problem(convnet(2), steps=4)
    (_, exact), (_, tesla) = one.ours(), one.ours(gradient="tesla")
    for name in ("images", "lr", "target"):
        assert_close(tesla[name], exact[name], META_GRADIENT, name)
    (_, exact), (_, tesla) = more.ours(), more.ours(gradient="tesla")
    assert (tesla["images"] - exact["images"]).norm() > 1e-3 * exact["images"].norm()


@pytest.mark.parametrize("k", [1, 3, 5, 9])
@pytest.mark.parametrize("make", [convnet(2), networks.AlexNet], ids=["ConvNet", "AlexNet"])
def test_truncated_counts_earlier_steps_as_constants(make, k):
    p = Problem(make, steps=5, batch=3, labels="soft", lr="per step")
    loss, got = p.ours(gradient=("truncated", k))
    _, want = p.naive(first=max(0, 5 - k))
    early = max(0, 5 - k)
    assert got["lr"][:early].abs().sum() == 0
    assert_all_close(got, want, META_GRADIENT)


@pytest.mark.parametrize("budget", [1, 20_000, 100_000, 10**9])
def test_memory_changes_no_bit(budget):
    p = Problem(convnet(3, width=8), steps=4, batch=3, segments=2, labels="soft", dsa="S")
    loss, exact = p.ours()
    again, kept = p.ours(memory=budget)
    assert torch.equal(loss, again)
    assert all(torch.equal(kept[name], exact[name]) for name in exact)


def test_finite_differences():
    p = Problem(convnet(2), steps=6, batch=3, labels="soft", dsa="S", lr="per step")
    _, gradients = p.ours()
    make, h = torch.Generator().manual_seed(9), 1e-5
    for name, g in gradients.items():
        direction = torch.randn(g.shape, generator=make, dtype=g.dtype)
        direction /= direction.norm()
        ends = []
        for sign in (1, -1):
            given = p.given()
            given[name] = given[name].detach() + sign * h * direction
            ends.append(p.loss(given))
        difference = (ends[0] - ends[1]) / (2 * h)
        assert_close((g * direction).sum(), difference, FINITE_DIFFERENCE, name)


def test_segments_average_and_shapes_of_start():
    p = Problem(convnet(2), steps=3, batch=3, segments=3)
    loss, got = p.ours()
    alone = []
    for s in range(3):
        given = p.given()
        given["start"] = given["start"][s].detach().requires_grad_()
        given["target"] = given["target"][s].detach().requires_grad_()
        rows = [r[s : s + 1] for r in p.draws.indices]
        value = fastmtt.match_trajectory(p.module, **given, steps=3, indices=rows)
        alone.append((value, meta_gradients(value, given)))
    assert_close(loss, sum(a for a, _ in alone) / 3, META_GRADIENT)
    assert_close(got["images"], sum(a["images"] for _, a in alone) / 3, META_GRADIENT)
    assert alone[0][1]["start"].shape == (p.size,)
    assert_close(got["start"][1], alone[1][1]["start"] / 3, META_GRADIENT)


def test_images_may_have_a_history():
    p = Problem(convnet(2), steps=3, batch=3, labels="soft")
    make = torch.Generator().manual_seed(2)
    decoder = torch.randn(6, 6, generator=make, dtype=torch.float64).requires_grad_()
    found = []
    for loss_of in (p.loss, p.naive_loss):
        given = p.given()
        given["images"] = torch.einsum("mn,nchw->mchw", decoder, given["images"]).tanh()
        given["labels"] = given["labels"].softmax(-1)
        found.append(torch.autograd.grad(3 * loss_of(given), decoder)[0])
    assert_close(found[0], found[1], META_GRADIENT)


def test_augmentation_that_is_not_ours():
    def gamma(x):
        return x.sigmoid() ** 2 + x.flip(-1)

    p = Problem(convnet(2), steps=4, batch=3, segments=2)
    _, got = p.ours(augment=gamma)
    given = p.given()
    losses = []
    for s in range(2):
        batches = [(gamma(given["images"][r[s]]), given["labels"][r[s]]) for r in p.draws.indices]
        end = naive.train(p.module, given["start"][s], batches, given["lr"])[-1]
        distance = (end - given["target"][s]).square().sum()
        losses.append(distance / (given["start"][s] - given["target"][s]).square().sum())
    want = naive.gradients(sum(losses) / 2, given)
    assert_all_close(got, want, META_GRADIENT)


def test_dsa_truth_really_augments():
    p = Problem(convnet(2), steps=12, batch=3, dsa="S")
    kinds = {int(parameters.kind) for parameters in p.draws.parameters}
    assert len(kinds) > 2 and published_dsa.NONE not in kinds


class ByHand:
    """One linear layer without bias, two classes, images of two numbers, theta_0 = 0.

    There p = (1/2, 1/2) for every x, so a step has the gradient g = (p - y) x^T; theta_1 = -lr g.
    With x = (2, 1), y = (1, 0), lr = 1/2: g = [[-1, -1/2], [1, 1/2]], theta_1 = [[1/2, 1/4],
    [-1/2, -1/4]]. With theta* = [[1, 0], [0, 1]] the difference e = theta_1 - theta* is
    [[-1/2, 1/4], [-1/2, -5/4]] and |theta*|^2 = 2.
    """

    def __init__(self, labels):
        flat = torch.nn.Flatten()
        self.module = torch.nn.Sequential(flat, torch.nn.Linear(2, 2, bias=False)).double()
        self.images = torch.tensor([[[[2.0, 1.0]]]], dtype=torch.float64, requires_grad=True)
        self.labels = labels
        self.lr = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        start = torch.zeros(4, dtype=torch.float64)
        target = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
        self.given = (start, target, self.images, labels, self.lr)


@pytest.mark.parametrize("gradient", ["exact", "tesla"])
def test_the_loss_is_the_ratio_of_squared_norms_and_its_gradients_are_those_by_hand(gradient):
    """Items 5 and 6 of the parity list, at N = 1."""
    by_hand = ByHand(torch.tensor([0]))
    loss = fastmtt.match_trajectory(by_hand.module, *by_hand.given, steps=1, gradient=gradient)
    # |e|^2 = 1/4 + 1/16 + 1/4 + 25/16 = 34/16, over |theta*|^2 = 2
    assert loss.item() == pytest.approx(17 / 16, rel=1e-15)
    loss.backward()
    # dL/dlr = -2 <g, e> / 2 = -(1/2 - 1/8 - 1/2 - 5/8)
    assert by_hand.lr.grad.item() == pytest.approx(3 / 4, rel=1e-15)
    # dL/dx = -2 lr e^T (p - y) / 2 with p - y = (-1/2, 1/2): e^T (p - y) = (0, -3/4)
    assert by_hand.images.grad.flatten().tolist() == pytest.approx([0, 3 / 8], abs=1e-16)


def test_the_gradient_of_soft_labels_goes_through_their_softmax():
    """Item 8 of the parity list: labels are learned as logits l, y = softmax(l)."""
    logits = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log().requires_grad_()
    synthetic = Synthetic(torch.zeros(1, 1, 1, 2), logits, torch.tensor(0.5))
    by_hand = ByHand(synthetic.targets)
    loss = fastmtt.match_trajectory(by_hand.module, *by_hand.given, steps=1)
    loss.backward()
    # y = (3/4, 1/4), g = (-1/4, 1/4) x^T, theta_1 = [[1/4, 1/8], [-1/4, -1/8]],
    # e = [[-3/4, 1/8], [-1/4, -9/8]], |e|^2 = 36/64 + 1/64 + 4/64 + 81/64
    assert loss.item() == pytest.approx(122 / 128, rel=1e-15)
    # dL/dy = 2 lr e x / 2 = 1/2 (-11/8, -13/8); through the softmax y * (dL/dy - <y, dL/dy>)
    assert logits.grad.flatten().tolist() == pytest.approx([3 / 128, -3 / 128], rel=1e-14)
