"""Which modules are the ConvNet: foreign classes of its structure, and near misses."""

import networks
import pytest
import torch
from compare import assert_close
from networks import PlainConvNet
from tolerances import FORMULA
from torch import nn
from torch.nn.utils import parametrizations, prune

from fastmtt.student import ConvNetStudent, ModuleStudent, find_structure, make_student
from fastmtt.student.structure import Structure
from fastmtt.student.zoo import ConvNet

IMAGE = (3, 8, 8)


def test_our_own():
    net = ConvNet((1, 28, 28), 10, depth=2, width=5)
    assert find_structure(net, (1, 28, 28)) == Structure((1, 5, 5), 2, (8, 8), 10)
    net = ConvNet((3, 9, 21), 7, depth=3, width=4)
    assert find_structure(net, (3, 9, 21)) == Structure((3, 4, 4, 4), 0, (1, 2), 7)
    assert find_structure(net, (3, 9, 21)).depth == 3


def test_a_foreign_class_of_the_same_structure():
    net = PlainConvNet(depth=2, width=6)
    assert find_structure(net, IMAGE) == Structure((3, 6, 6), 0, (2, 2), 3)
    assert isinstance(make_student(net, IMAGE), ConvNetStudent)
    wide = PlainConvNet(depth=2, width=6, size=8, padding=3)  # the border MNIST's images get
    assert find_structure(wide, IMAGE) == Structure((3, 6, 6), 2, (3, 3), 3)


def test_channels_that_differ_from_block_to_block():
    net = ConvNet(IMAGE, 3, depth=2, width=4)
    net.features[4], net.features[5] = nn.Conv2d(4, 7, 3, padding=1), nn.GroupNorm(7, 7)
    net.classifier = nn.Linear(7 * 4, 3)
    assert find_structure(net, IMAGE) == Structure((3, 4, 7), 0, (2, 2), 3)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Clipped(nn.ReLU):
    def forward(self, x):
        return super().forward(x).clamp(max=50.0)


class ExtraOp(PlainConvNet):
    def forward(self, x):
        return super().forward(x) * 1.5


class FunctionalHead(PlainConvNet):
    def forward(self, x):
        return self.classifier(self.features(x.flip(-1)).flatten(1))


class SizeOnly(PlainConvNet):
    def forward(self, x):
        return self.classifier(self.features(x[..., :8, :8]).flatten(1))


class TwoInputs(PlainConvNet):
    def forward(self, x, condition):
        return super().forward(x + condition)


def with_conv(make=nn.Conv2d, **options):
    def conv(c_in, c_out, padding):
        return make(c_in, c_out, **{"kernel_size": 3, "padding": padding, **options})

    return lambda: PlainConvNet(conv=conv)


def with_norm(make):
    return lambda: PlainConvNet(norm=make)


def changed(change):
    def make():
        net = PlainConvNet()
        change(net)
        return net

    return make


def add(name, value):
    return changed(lambda net: setattr(net, name, value))


def tie(net):
    net.features[4].weight = nn.Parameter(torch.zeros(4, 4, 3, 3))
    net.features[4].bias = net.features[0].bias


NEAR_MISSES = {
    "leaky relu": lambda: PlainConvNet(relu=lambda: nn.LeakyReLU(0.01)),
    "sigmoid": lambda: PlainConvNet(relu=nn.Sigmoid),
    "subclass of relu": lambda: PlainConvNet(relu=Clipped),
    "max pool": lambda: PlainConvNet(pool=lambda: nn.MaxPool2d(2)),
    "pool 3": lambda: PlainConvNet(pool=lambda: nn.AvgPool2d(3, 2, 1)),
    "pool stride 1": lambda: PlainConvNet(size=4, depth=1, pool=lambda: nn.AvgPool2d(2, 1)),
    "pool ceil": lambda: PlainConvNet(pool=lambda: nn.AvgPool2d(2, ceil_mode=True)),
    "pool divisor": lambda: PlainConvNet(pool=lambda: nn.AvgPool2d(2, divisor_override=3)),
    "norm eps": with_norm(lambda c: nn.GroupNorm(c, c, eps=1e-3)),
    "norm without affine": with_norm(lambda c: nn.GroupNorm(c, c, affine=False)),
    "two channels a group": with_norm(lambda c: nn.GroupNorm(c // 2, c)),
    "InstanceNorm2d": with_norm(lambda c: nn.InstanceNorm2d(c, affine=True)),
    "no norm": with_norm(lambda c: nn.Identity()),
    "no bias": with_conv(bias=False),
    "reflected border": with_conv(padding_mode="reflect"),
    "standardised weights": with_conv(Standardised),
    "1x1 convolution": with_conv(kernel_size=1, padding=0),
    "stride 2": with_conv(stride=2),
    "dilated": with_conv(dilation=2, padding=2),
    "padding by name": with_conv(padding="same"),
    "extra op": ExtraOp,
    "mirrored input": FunctionalHead,
    "two inputs": TwoInputs,
    "extra layer": changed(lambda net: net.features.append(nn.Identity())),
    "extra child": add("extra", nn.Identity()),
    "extra parameter": add("scale", nn.Parameter(torch.ones(()))),
    "tied parameters": changed(tie),
    "parametrised": changed(lambda net: parametrizations.weight_norm(net.features[4])),
    "pruned": changed(lambda net: prune.random_unstructured(net.features[0], "weight", 0.5)),
    "hook": changed(lambda n: n.features[2].register_forward_hook(lambda m, x, out: 2 * out)),
    "pre-hook": changed(lambda n: n.features.register_forward_pre_hook(lambda m, x: (-x[0],))),
    "backward hook": changed(
        lambda n: n.features[0].register_full_backward_hook(lambda m, gx, g: (2 * gx[0],))
    ),
    "classifier without bias": add("classifier", nn.Linear(16, 3, bias=False)),
    "classifier of two layers": add("classifier", nn.Sequential(nn.Linear(16, 3))),
    "AlexNet": networks.AlexNet,
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_go_by_their_own_forward(name):
    reason = find_structure(NEAR_MISSES[name](), IMAGE)
    assert isinstance(reason, str) and reason
    try:
        student = make_student(NEAR_MISSES[name](), IMAGE)
    except ValueError as refusal:  # some cannot take such images at all
        assert "cannot take a batch" in str(refusal)
    else:
        assert isinstance(student, ModuleStudent)


def test_other_image_sizes_are_other_structures():
    net = SizeOnly()
    assert isinstance(find_structure(net, IMAGE), Structure)
    assert isinstance(find_structure(net, (3, 9, 9)), str)  # its forward cuts these
    assert isinstance(find_structure(net, (3, 16, 16)), str)
    assert isinstance(find_structure(net, (1, 8, 8)), str)
    assert isinstance(find_structure(net, (192,)), str)


def test_a_module_changed_after_the_first_call_is_looked_at_again():
    net = PlainConvNet()
    assert isinstance(find_structure(net, IMAGE), Structure)
    handle = net.features[1].register_forward_hook(lambda m, x, out: out + 1)
    assert isinstance(find_structure(net, IMAGE), str)
    handle.remove()
    assert isinstance(find_structure(net, IMAGE), Structure)
    net.features[2] = nn.LeakyReLU()
    assert isinstance(find_structure(net, IMAGE), str)


def test_looking_changes_neither_the_module_nor_the_generator():
    net, state = PlainConvNet().double(), torch.get_rng_state()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    make_student(net, IMAGE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


@pytest.mark.parametrize(
    "name", ["leaky relu", "hook", "standardised weights", "tied parameters", "extra op"]
)
def test_near_misses_compute_what_they_say(name):
    net = NEAR_MISSES[name]().double()
    student = make_student(net, IMAGE)
    theta = torch.cat([p.detach().flatten() for p in net.parameters()])
    x = torch.randn(1, 2, *IMAGE, dtype=torch.float64)
    assert_close(student.logits(student.pack(theta[None]), x)[0], net(x[0]), FORMULA)
