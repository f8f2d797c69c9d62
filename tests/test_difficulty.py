"""Scores of difficulty against autograd image by image, and against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import AlexNet, PlainConvNet, ResNet18, seeded
from torch import nn

from fastmtt import difficulty
from fastmtt.difficulty import Forgetting, el2n, grand, uncertainty
from fastmtt.ops import backends
from fastmtt.student import ConvNetStudent, ModuleStudent, flatten_parameters, make_student
from fastmtt.student.zoo import make_network


def images_of(n, channels, size):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, channels, size, size, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=generator)


def norms_one_by_one(module, thetas, x, y, loss_fn=F.cross_entropy):
    rows = []
    for theta in thetas:
        nn.utils.vector_to_parameters(theta, module.parameters())
        row = []
        for image, label in zip(x, y, strict=True):
            loss = loss_fn(module(image[None]), label[None])
            parts = torch.autograd.grad(loss, list(module.parameters()))
            row.append(math.sqrt(sum(float(part.square().sum()) for part in parts)))
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def squared(outputs, y):
    return (outputs - F.one_hot(y, outputs.shape[1])).square().sum(1).mean()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("at_once", [1, 5000, 2**23])
@pytest.mark.parametrize("loss_fn", [None, squared], ids=["cross-entropy", "squares"])
def test_grand_is_the_norm_autograd_gives_image_by_image(
    monkeypatch, request, backend, at_once, loss_fn
):
    if backend == "cpu":
        request.getfixturevalue("extension")
    monkeypatch.setitem(difficulty._AT_ONCE, "cpu", at_once)
    modules = [
        seeded(lambda: make_network("ConvNetD2W8", image_shape=(3, 8, 8), classes=3), seed)
        for seed in (0, 1)
    ]
    thetas = torch.stack([flatten_parameters(module) for module in modules])
    x, y = images_of(11, 3, 8)
    student = make_student(modules[0], (3, 8, 8), loss_fn)
    assert isinstance(student, ConvNetStudent)
    with backends.use(backend):
        found = grand(student, thetas, x, y)
    wanted = norms_one_by_one(modules[0], thetas, x, y, loss_fn or F.cross_entropy)
    assert found.shape == (2, 11) and found.dtype == torch.float64
    assert float((found / wanted - 1).abs().max()) < 1e-9


@pytest.mark.parametrize(
    "make, size",
    [
        (lambda: PlainConvNet(padding=2, pool=lambda: nn.MaxPool2d(2)), 6),
        (AlexNet, 16),
        (ResNet18, 32),
    ],
    ids=["max pooling, ReLU in place", "AlexNet", "ResNet18"],
)
def test_grand_of_any_module_is_the_norm_autograd_gives_image_by_image(make, size):
    module = seeded(make)
    x, y = images_of(5, 3, size)
    student = make_student(module, (3, size, size))
    assert isinstance(student, ModuleStudent)
    theta = flatten_parameters(module)[None]
    found = grand(student, theta, x, y)
    wanted = norms_one_by_one(module, theta, x, y)
    assert float((found / wanted - 1).abs().max()) < 1e-9


class Given(nn.Module):
    """Logits are the image's values times its one weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x.flatten(1)


def given(probabilities):
    """A student and images that it gives these probabilities; a second weight doubles logits."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return ModuleStudent(Given()), torch.tensor([[1.0], [2.0]]).double(), p.log()[:, None, None]


def test_el2n_by_hand():
    student, theta, x = given([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [1 / 3] * 3])
    found = el2n(student, theta, x, torch.tensor([0, 2, 1]))
    # Doubled logits square the probabilities: 1/4, 1/16, 1/16 of 3/8 are 2/3, 1/6, 1/6.
    wanted = [[3 / 8, 7 / 8, 2 / 3], [1 / 6, 7 / 6, 2 / 3]]
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(found.square(), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "measure, wanted",
    [
        ("entropy", [1.5 * math.log(2), math.log(3), 0]),
        ("margin", [0.75, 1, 0]),
        ("confidence", [0.5, 2 / 3, 0]),
    ],
)
def test_uncertainty_by_hand(measure, wanted):
    student, theta, x = given([[0.25, 0.5, 0.25], [1 / 3] * 3, [1, 1e-200, 1e-200]])
    found = uncertainty(student, theta[:1], x, measure)
    wanted = torch.tensor([wanted], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_a_prediction_without_any_doubt_has_no_uncertainty():
    student, theta, _ = given([[0.5, 0.5]])
    x = torch.tensor([0.0, -1e4], dtype=torch.float64)[None, None, None]  # 1 and, rounded, 0
    for measure in ("entropy", "margin", "confidence"):
        assert uncertainty(student, theta, x, measure).tolist() == [[0.0], [0.0]]


def test_forgetting_counts_falls_from_right_to_wrong():
    looks = [  # one column an image; the second network sees the columns the other way round
        "1 1 0 0 1 0",
        "0 1 0 0 1 0",
        "1 1 0 1 0 0",
        "0 1 0 1 1 1",
        "0 1 0 1 0 0",
    ]
    forgetting = Forgetting(2, 6)
    for look in looks:
        right = torch.tensor([mark == "1" for mark in look.split()])
        forgetting.look(torch.stack([right, right.flip(0)]))
    once = [2, 0, 5, 0, 2, 1]  # the third was never right: as many as looks
    assert forgetting.scores.tolist() == [once, once[::-1]]
