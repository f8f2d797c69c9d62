"""IDC's networks against torchvision's, the field's ConvNet, or plain functional spellings."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from compare import assert_close
from tolerances import FORMULA
from torch import nn

from fastmtt import FastmttError
from fastmtt.errors import NoStudentError
from fastmtt.student import ConvNetStudent, flatten_parameters, make_student
from fastmtt.student.zoo import make_network
from fastmtt.student.zoo.idc import GroupedConvNet

IMAGE, PARTS = (3, 16, 16), ("weight", "bias")


def seeded(net):
    """The network in float64 with norms that do something."""
    make = torch.Generator().manual_seed(0)
    for module in net.double().modules():
        if isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=make)
            module.bias.data.normal_(0, 0.3, generator=make)
    return net


def images(*shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_convnet_3_is_the_fields_in_another_order():
    net, x = seeded(make_network("ConvNet-3", image_shape=IMAGE, classes=4)), images(*IMAGE)
    names = [name for name, _ in net.named_parameters()]
    pairs = [(f"layers.{k}.{i}.{p}") for k in ("conv", "norm") for i in range(3) for p in PARTS]
    assert names == [*pairs, "classifier.weight", "classifier.bias"]
    a = x
    for i in range(3):
        conv, norm = net.layers["conv"][i], net.layers["norm"][i]
        a = F.conv2d(a, conv.weight, conv.bias, padding=1)
        a = F.group_norm(a, 128, norm.weight, norm.bias)
        a = F.avg_pool2d(a.relu(), 2)
    want = F.linear(a.flatten(1), net.classifier.weight, net.classifier.bias)
    assert_close(net(x), want, FORMULA)


def test_the_compiled_student_serves_convnet_3_in_its_own_order():
    net = seeded(GroupedConvNet(IMAGE, 4, depth=2, width=1 / 16))
    assert net.layers["conv"][0].out_channels == 8
    student, x, y = make_student(net, IMAGE), images(*IMAGE), torch.tensor([1, 3])
    assert isinstance(student, ConvNetStudent) and student.structure.grouped
    theta = flatten_parameters(net).detach()[None]
    assert torch.equal(student.unpack(student.pack(theta)), theta)
    loss, g = student.gradient(student.pack(theta), x[None], y[None])
    wanted = F.cross_entropy(net(x), y)
    grads = torch.autograd.grad(wanted, list(net.parameters()))
    assert_close(loss[0], wanted.detach(), FORMULA)
    assert_close(student.unpack(g)[0], torch.cat([part.flatten() for part in grads]), FORMULA)


def test_lists_of_other_lengths_or_another_order_of_calls_are_not_compiled():
    longer = GroupedConvNet(IMAGE, 4, depth=2, width=1 / 16)
    longer.layers["act"].append(nn.ReLU())

    class Early(GroupedConvNet):
        def forward(self, x):
            return super().forward(x.flip(-1))

    with pytest.raises(NoStudentError, match="cannot take a batch"):
        make_student(longer, IMAGE)
    early = Early(IMAGE, 4, depth=2, width=1 / 16)
    assert not isinstance(make_student(early, IMAGE), ConvNetStudent)


@pytest.mark.parametrize(("name", "blocks"), [("ResNet-10", 1), ("ResNet-18", 2)])
def test_imagenets_resnets_are_torchvisions(name, blocks):
    net, x = seeded(make_network(name, image_shape=(3, 96, 96), classes=5)), images(3, 96, 96)
    block = torchvision.models.resnet.BasicBlock
    other = torchvision.models.ResNet(
        block,
        [blocks] * 4,
        num_classes=5,
        norm_layer=lambda channels: nn.GroupNorm(channels, channels),
    ).double()
    with torch.no_grad():
        for mine, its in zip(other.parameters(), net.parameters(), strict=True):
            mine.copy_(its)
        assert_close(net(x), other(x), FORMULA)


@pytest.mark.parametrize(("size", "kernel", "pooling"), [(32, 3, 1), (72, 3, 2), (136, 7, 4)])
def test_resnetap_pools_behind_the_relu_and_its_stem_follows_the_size(size, kernel, pooling):
    shape = (3, size, size)
    net, x = seeded(make_network("ResNetAP-10", image_shape=shape, classes=5)), images(*shape)
    p = iter(net.parameters())

    def conv_norm(a):
        w = next(p)
        a = F.conv2d(a, w, padding=w.shape[-1] // 2)
        return F.group_norm(a, len(w), next(p), next(p))

    with torch.no_grad():
        assert next(iter(net.parameters())).shape[-1] == kernel
        a = F.avg_pool2d(conv_norm(x).relu(), pooling)
        for stage in range(4):
            out = conv_norm(a).relu()
            out = F.avg_pool2d(out, 2) if stage else out
            out = conv_norm(out)
            if stage:  # the shortcut pools between its convolution and its norm
                w = next(p)
                a = F.avg_pool2d(F.conv2d(a, w), 2)
                a = F.group_norm(a, len(w), next(p), next(p))
            a = (out + a).relu()
        want = F.linear(a.mean((2, 3)), next(p), next(p))
        assert next(p, None) is None
        assert_close(net(x), want, FORMULA)


def test_convolutions_start_by_their_fan_out_and_norms_at_one():
    net = make_network("ResNet-10", image_shape=(3, 32, 32), classes=10)
    w = net.layer4[0].conv2.weight
    error = 5 / (2 * w.numel()) ** 0.5  # five standard errors of a deviation
    assert abs(float(w.detach().std()) / (2 / (9 * 256)) ** 0.5 - 1) < error
    norm = net.layer4[0].bn1
    assert bool((norm.weight == 1).all()) and bool((norm.bias == 0).all())


@pytest.mark.parametrize("name", ["DenseNet", "EfficientNet-B0", "ResNet10-BN", "ResNet18-BN"])
def test_networks_for_evaluation_take_images_to_logits(name):
    net = make_network(name, image_shape=(3, 32, 32), classes=7).eval()
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "says"),
    [
        ("ResNetAP-10", (3, 8, 8), "16x16"),
        ("DenseNet", (3, 4, 4), "8x8"),
        ("EfficientNet-B0", (1, 32, 32), "3 channels"),
    ],
)
def test_images_they_cannot_take_are_refused(name, shape, says):
    with pytest.raises(FastmttError, match=says):
        make_network(name, image_shape=shape, classes=10)
