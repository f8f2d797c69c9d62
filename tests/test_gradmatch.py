"""IDC's gradient against autograd's double backward, every class with batches of its own."""

import networks
import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from tolerances import META_GRADIENT
from torch import nn
from torch.func import functional_call

from fastmtt.gradmatch import METRICS, match_gradients
from fastmtt.student import flatten_parameters, make_student
from fastmtt.student.zoo import make_network

CLASSES, SHAPE = 3, (3, 8, 8)
MODELS = ["ConvNetD2W8", "ConvNetD2W8LN"]  # compiled, and by its own forward


def by_words(found, wanted, metric):
    """A distance of one tensor's gradients as IDC defines it, output channel by output channel."""
    channels = zip(found.flatten(1), wanted.flatten(1), strict=True)
    difference = found - wanted
    match metric:
        case "mse":
            return (difference**2).sum()
        case "l1":
            return difference.abs().sum()
        case "l1_mean":
            return sum((g - r).abs().mean() for g, r in channels)
    cosines = (g @ r / (g.norm() * r.norm() + 1e-6) for g, r in channels)
    return sum(1 - cosine for cosine in cosines)


def naive(module, real, synthetic, metric, axes):
    """One class: the distance and, by double backward, its gradient in the synthetic images."""
    weights = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}

    def gradients(x, y, graph):
        loss = F.cross_entropy(functional_call(module, weights, (x,)), y)
        return torch.autograd.grad(loss, list(weights.values()), create_graph=graph)

    images = synthetic[0].clone().requires_grad_()
    wanted = gradients(*real, False)
    found = gradients(images, synthetic[1], True)
    counted = [(g, r) for g, r in zip(found, wanted, strict=True) if g.dim() in axes]
    loss = sum(by_words(g.view(len(g), -1), r.view(len(r), -1), metric) for g, r in counted)
    return loss.detach(), torch.autograd.grad(loss, images)[0]


def problem(model, seed=0):
    module = networks.seeded(
        lambda: make_network(model, image_shape=SHAPE, classes=CLASSES), seed
    ).double()
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    labels = torch.arange(CLASSES)[:, None]
    real = normal(CLASSES, 7, *SHAPE) + normal(CLASSES, 1, *SHAPE), labels.expand(-1, 7)
    synthetic = normal(CLASSES, 4, *SHAPE), labels.expand(-1, 4)
    return module, real, synthetic


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("keys", "axes"),
    [({}, {4}), ({"bias": True}, {4, 1}), ({"fc": True}, {4, 2})],
    ids=["convolutions", "biases too", "classifier too"],
)
def test_all_classes_at_once_are_double_backward_one_by_one(model, metric, keys, axes):
    module, real, synthetic = problem(model)
    axes = axes | ({3} if model.endswith("LN") else set())  # a layer norm's [C,H,W]
    student = make_student(module, SHAPE)
    theta = student.pack(flatten_parameters(module))
    loss, gx = match_gradients(student, theta, real, synthetic, metric, **keys)
    assert loss.shape == (CLASSES,) and gx.shape == synthetic[0].shape
    for c in range(CLASSES):
        of_class = [[part[c] for part in pair] for pair in (real, synthetic)]
        want_loss, want = naive(module, *of_class, metric, axes)
        assert want.norm() > 0
        assert_close(loss[c], want_loss, META_GRADIENT)
        assert_close(gx[c], want, META_GRADIENT, f"class {c}")


def test_weights_of_its_own_for_every_class():
    module, real, synthetic = problem(MODELS[0])
    student = make_student(module, SHAPE)
    modules = [problem(MODELS[0], seed)[0] for seed in range(CLASSES)]
    theta = student.pack(torch.stack([flatten_parameters(m) for m in modules]))
    _, gx = match_gradients(student, theta, real, synthetic, "l1")
    for c, own in enumerate(modules):
        of_class = [[part[c] for part in pair] for pair in (real, synthetic)]
        assert_close(gx[c], naive(own, *of_class, "l1", {4})[1], META_GRADIENT)


def test_soft_labels():
    module, real, (images, labels) = problem(MODELS[0])
    student = make_student(module, SHAPE)
    theta = student.pack(flatten_parameters(module))
    soft = nn.functional.one_hot(labels, CLASSES).double()
    hard = match_gradients(student, theta, real, (images, labels), "mse")
    for found, wanted in zip(
        match_gradients(student, theta, real, (images, soft), "mse"), hard, strict=True
    ):
        assert_close(found, wanted, META_GRADIENT)
