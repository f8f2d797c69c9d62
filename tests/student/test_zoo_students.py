"""Which verbs serve which network of the zoo, and that both give the exact meta-gradient."""

import pytest
import torch
from compare import assert_all_close, assert_close
from problems import Problem
from tolerances import META_GRADIENT

from fastmtt.student import ConvNetStudent, ModuleStudent, find_structure, make_student
from fastmtt.student.zoo import make_network

BY_OPS = ["D2W4AR", "D2W4IN", "D2W4AP", "D1W5", "D3W4", "D4W6", "D2W4GN"]  # 4 groups of 4
BY_AUTOGRAD = {  # and the reason
    "D2W4AS": "block 1: its activation is not ReLU",
    "D2W4AL": "block 1: its activation is not ReLU",
    "D2W4NN": "blocks of convolution, norm, ReLU, pooling",
    "D2W4LN": "block 1: its norm is not GroupNorm with one channel a group",
    "D2W8GN": "block 1: its norm is not GroupNorm with one channel a group",
    "D2W4NP": "blocks of convolution, norm, ReLU, pooling",
    "D2W4MP": "block 1: its pooling is not plain 2x2 averaging",
    "D3W4ALGNMP": "block 1: its activation is not ReLU",
}
SHAPES = [(3, 16, 16), (3, 17, 19), (1, 28, 28)]


def maker(kind, shape):
    return lambda: make_network(f"ConvNet{kind}", image_shape=shape, classes=3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", [*BY_OPS, *BY_AUTOGRAD])
def test_meta_gradient_of_every_convnet(kind, shape):
    options = dict(steps=3, batch=4, segments=2, labels="soft", lr="per step")
    p = Problem(maker(kind, shape), shape=shape, **options)
    student = make_student(p.module, shape)
    assert type(student) is (ConvNetStudent if kind in BY_OPS else ModuleStudent)
    loss, got = p.ours()
    want_loss, want = p.naive()
    assert_close(loss, want_loss, META_GRADIENT, "loss")
    assert_all_close(got, want, META_GRADIENT)


@pytest.mark.parametrize(
    ("kind", "size", "verbs"),
    [
        ("D4W4", 64, ConvNetStudent),
        ("D5W4", 128, ConvNetStudent),
        ("D6W4", 256, ConvNetStudent),
        ("D4W4ALGNMP", 64, ModuleStudent),
        ("D5W4LN", 128, ModuleStudent),
        ("D6W4AS", 256, ModuleStudent),
    ],
)
def test_meta_gradient_at_larger_resolutions(kind, size, verbs):
    shape = (3, size, size)
    p = Problem(maker(kind, shape), shape=shape, steps=2, batch=2, n=3, labels="soft")
    assert type(make_student(p.module, shape)) is verbs
    loss, got = p.ours()
    want_loss, want = p.naive()
    assert_close(loss, want_loss, META_GRADIENT, "loss")
    assert_all_close(got, want, META_GRADIENT)


@pytest.mark.parametrize("kind", ["AS", "AL", "NN", "LN", "GN", "NP", "MP"])
def test_meta_gradient_with_augmentation_and_hard_labels(kind):
    shape = (3, 8, 8)
    p = Problem(maker(f"D1W4{kind}", shape), shape=shape, steps=5, batch=4, dsa="S")
    loss, got = p.ours()
    want_loss, want = p.naive()
    assert_close(loss, want_loss, META_GRADIENT, "loss")
    assert_all_close(got, want, META_GRADIENT)


@pytest.mark.parametrize("kind", BY_AUTOGRAD)
def test_the_reason_is_said(kind):
    shape = (3, 16, 16)
    assert BY_AUTOGRAD[kind] in find_structure(maker(kind, shape)(), shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ConvNetD2W4BN", (3, 8, 8)),
        ("ResNet10BN", (3, 8, 8)),
        ("VGG11BN", (3, 32, 32)),
        ("ResNet18BN_AP", (3, 8, 8)),
    ],
)
def test_batch_norm_is_no_students(name, shape):
    with torch.device("meta"):
        net = make_network(name, image_shape=shape, classes=3)
    with pytest.raises(ValueError, match="is BatchNorm2d in training mode, whose running stati"):
        make_student(net, shape)


@pytest.mark.parametrize("name", ["MLP", "AlexNet", "ResNet10"])
def test_the_other_networks_are_students_by_their_own_forward(name):
    shape = (1, 16, 16)
    net = make_network(name, image_shape=shape, classes=3)
    student = make_student(net, shape)
    assert isinstance(student, ModuleStudent)
    theta = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    x, y = torch.randn(1, 2, *shape), torch.tensor([[0, 2]])
    _, gradient = student.gradient(theta[None], x, y)
    torch.nn.functional.cross_entropy(net(x[0]), y[0]).backward()
    want = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    assert torch.equal(gradient[0], want)
