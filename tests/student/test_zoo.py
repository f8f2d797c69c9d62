"""The zoo's networks against torchvision's, or against plain functional spellings."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
import torchvision
from compare import assert_close
from tolerances import FORMULA
from torch import nn

from fastmtt import FastmttError
from fastmtt.student.zoo import make_network


def seeded(name, image_shape, classes=10):
    """A network in float64 with norms that do something, and two images for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make_network(name, image_shape=image_shape, classes=classes).double()
        for module in net.modules():
            if isinstance(module, (nn.GroupNorm, nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
        return net, torch.randn(2, *image_shape, dtype=torch.float64)


def with_weights_of(other, net):
    """``other`` with the parameters of ``net``, which stand in the same order."""
    with torch.no_grad():
        for mine, its in zip(other.parameters(), net.parameters(), strict=True):
            mine.copy_(its)
    return other


def group_norm(channels):
    return nn.GroupNorm(channels, channels)


def torchvision_resnet(norm, blocks, stem_stride, classes):
    block = torchvision.models.resnet.BasicBlock
    net = torchvision.models.ResNet(block, blocks, num_classes=classes, norm_layer=norm)
    net.conv1 = nn.Conv2d(3, 64, 3, stem_stride, 1, bias=False)
    net.maxpool = nn.Identity()
    return net.double()


@pytest.mark.parametrize(
    ("name", "norm", "blocks", "stem_stride", "size"),
    [
        ("ResNet18", group_norm, [2, 2, 2, 2], 1, 32),
        ("ResNet18BN", nn.BatchNorm2d, [2, 2, 2, 2], 1, 32),
        ("ResNet10", group_norm, [1, 1, 1, 1], 1, 28),
        ("ResNet10BN", nn.BatchNorm2d, [1, 1, 1, 1], 1, 8),
        ("ResNet18_Tiny", group_norm, [2, 2, 2, 2], 2, 64),
        ("ResNet18BN_Tiny", nn.BatchNorm2d, [2, 2, 2, 2], 2, 32),
    ],
)
def test_resnets_are_torchvisions_with_a_stem_for_small_images(
    name, norm, blocks, stem_stride, size
):
    net, x = seeded(name, (3, size, size))
    other = with_weights_of(torchvision_resnet(norm, blocks, stem_stride, 10), net)
    assert_close(net(x), other(x), FORMULA, "training")
    assert_close(net.eval()(x), other.eval()(x), FORMULA, "evaluation")
    names = [n.replace("downsample", "shortcut") for n, _ in other.named_parameters()]
    assert [n for n, _ in net.named_parameters()] == [
        *names[:-2],
        "classifier.weight",
        "classifier.bias",
    ]


@pytest.mark.parametrize(
    ("name", "norm", "size", "stride"),
    [
        ("VGG11", group_norm, 32, 1),
        ("VGG11BN", None, 32, 1),
        ("VGG11_Tiny", group_norm, 64, 2),
    ],
)
def test_vggs_are_torchvisions_with_one_linear_layer(name, norm, size, stride):
    net, x = seeded(name, (3, size, size))
    layers = torchvision.models.vgg11_bn().features
    for i, layer in enumerate(layers):
        if norm is not None and isinstance(layer, nn.BatchNorm2d):
            layers[i] = norm(layer.num_features)
    other = nn.Sequential(*layers, nn.AvgPool2d(1, stride), nn.Flatten(), nn.Linear(512, 10))
    with_weights_of(other.double(), net)
    assert_close(net(x), other(x), FORMULA)
    names = [n for n, _ in net.named_parameters()]
    assert names[:2] == ["features.0.weight", "features.0.bias"]
    assert names[-1] == "classifier.bias"


def normed(x, weights, kind):
    """The norms written out, from the mean and variance of each group of numbers."""
    if kind == "NN":
        return x
    weight, bias = next(weights), next(weights)
    n, c, h, w = x.shape
    groups = {"IN": (n, c, h * w), "GN": (n, 4, c // 4 * h * w), "LN": (n, c * h * w)}
    if kind == "BN":
        mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
        x = (x - mean) / (var + 1e-5).sqrt()
    else:
        flat = x.reshape(groups[kind])
        mean, var = flat.mean(-1, keepdim=True), flat.var(-1, correction=0, keepdim=True)
        x = ((flat - mean) / (var + 1e-5).sqrt()).view(n, c, h, w)
    shape = (1, c, 1, 1) if kind != "LN" else (1, c, h, w)
    return x * weight.view(shape) + bias.view(shape)


ACTIVATIONS = {
    "AS": lambda x: 1 / (1 + (-x).exp()),
    "AR": lambda x: x.clamp(min=0),
    "AL": lambda x: torch.where(x > 0, x, 0.01 * x),
}


def windows(x):
    """The four pixels of each 2x2 window [4,B,C,H/2,W/2]; a last odd row or column is left out."""
    h, w = (size // 2 * 2 for size in x.shape[2:])
    return torch.stack([x[..., i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)])


POOLINGS = {
    "NP": lambda x: x,
    "MP": lambda x: windows(x).amax(0),
    "AP": lambda x: windows(x).mean(0),
}


def convnet(net, x, activation="AR", norm="IN", pooling="AP", padding=1, depth=2):
    weights = iter(net.parameters())
    for block in range(depth):
        x = F.conv2d(x, next(weights), next(weights), padding=1 if block else padding)
        x = POOLINGS[pooling](ACTIVATIONS[activation](normed(x, weights, norm)))
    return x.flatten(1) @ next(weights).T + next(weights)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((f"ConvNetD2W8{kind}", {"activation": kind}) for kind in ("AS", "AR", "AL")),
        *((f"ConvNetD2W8{kind}", {"norm": kind}) for kind in ("NN", "BN", "LN", "IN", "GN")),
        *((f"ConvNetD2W8{kind}", {"pooling": kind}) for kind in ("NP", "MP", "AP")),
        ("ConvNetD1W8", {"depth": 1}),
        ("ConvNetD3W4ALGNMP", {"depth": 3, "activation": "AL", "norm": "GN", "pooling": "MP"}),
    ],
)
@pytest.mark.parametrize("image_shape", [(3, 9, 12), (1, 28, 28)])
def test_convnets_are_what_their_names_say(name, kinds, image_shape):
    net, x = seeded(name, image_shape)
    padding = 3 if image_shape[0] == 1 else 1
    assert_close(net(x), convnet(net, x, padding=padding, **kinds), FORMULA)


def test_the_network_of_kernel_inducing_points_is_wide_and_has_no_norm():
    with torch.device("meta"):
        net = make_network("ConvNetKIP", image_shape=(3, 32, 32), classes=10)
    kinds = [type(layer) for layer in net.features]
    assert kinds == 3 * [nn.Conv2d, nn.ReLU, nn.AvgPool2d] and net.features[0].out_channels == 1024


def test_fresh_weights_are_pytorchs_own_in_the_order_of_the_layers():
    torch.manual_seed(5)
    net = make_network("ConvNetD2W4", image_shape=(3, 8, 8), classes=3)
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), nn.Conv2d(4, 4, 3), nn.GroupNorm(4, 4)]
    want = [p for layer in [*layers, nn.Linear(16, 3)] for p in layer.parameters()]
    assert all(torch.equal(mine, its) for mine, its in zip(net.parameters(), want, strict=True))


def mlp(net, x, layers=3):
    x = x.flatten(1)
    for i in range(layers):
        linear = getattr(net, f"fc_{i + 1}")
        x = x @ linear.weight.T + linear.bias
        x = x if i == layers - 1 else x.clamp(min=0)
    return x


def stack(convolutions, x, *layers):
    """Convolutions with ReLU; a layer is (stride, padding, whether max pooling follows)."""
    for conv, (stride, padding, pooled) in zip(convolutions, layers, strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, stride, padding).clamp(min=0)
        x = windows(x).amax(0) if pooled else x
    return x


def convolutions(net):
    return [layer for layer in net.features if isinstance(layer, nn.Conv2d)]


ALEXNET = ((1, 2, True), (1, 1, False), (1, 1, False), (1, 1, True))


@pytest.mark.parametrize(
    ("name", "image_shape", "stride", "padding"),
    [
        ("LeNet", (3, 32, 32), 1, 0),
        ("LeNet", (1, 28, 28), 1, 2),
        ("LeNet_Tiny", (3, 64, 64), 2, 0),
        ("AlexNet", (3, 32, 32), 1, 2),
        ("AlexNet", (1, 28, 28), 1, 4),
        ("AlexNet", (1, 8, 8), 1, 2),
        ("AlexNet_Tiny", (3, 64, 64), 2, 2),
    ],
)
def test_lenet_and_alexnet_are_what_the_papers_say(name, image_shape, stride, padding):
    net, x = seeded(name, image_shape)
    if name.startswith("LeNet"):
        features = stack(convolutions(net), x, (stride, padding, True), (1, 0, True))
        want = mlp(net, features)
    else:
        features = stack(convolutions(net), x, (stride, padding, True), *ALEXNET)
        want = features.flatten(1) @ net.fc.weight.T + net.fc.bias
    assert_close(net(x), want, FORMULA)


@pytest.mark.parametrize(("name", "shape"), [("MLP", (3, 32, 32)), ("MLP_Tiny", (3, 64, 64))])
def test_mlp(name, shape):
    net, x = seeded(name, shape)
    assert_close(net(x), mlp(net, x), FORMULA)


@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 28, 28)])
@pytest.mark.parametrize("name", ["ResNet18_AP", "ResNet18BN_AP"])
def test_resnets_with_pooling_halve_behind_the_convolutions(name, image_shape):
    net, x = seeded(name, image_shape)
    want = F.relu(net.bn1(F.conv2d(x, net.conv1.weight, padding=1)))
    blocks = [b for n, b in net.named_modules() if n.count(".") == 1 and n.startswith("layer")]
    assert len(blocks) == 8
    for i, block in enumerate(blocks):
        halved = i in (2, 4, 6)
        out = F.relu(block.bn1(F.conv2d(want, block.conv1.weight, padding=1)))
        out = windows(out).mean(0) if halved else out
        out = block.bn2(F.conv2d(out, block.conv2.weight, padding=1))
        if halved:
            want = windows(F.conv2d(want, block.shortcut[0].weight)).mean(0)
            want = block.shortcut[2](want)
        want = F.relu(out + want)
    side = 4 if image_shape[0] == 3 else 3
    assert want.shape[2:] == (side, side)
    want = want.flatten(1) @ net.classifier.weight.T + net.classifier.bias
    assert_close(net(x), want, FORMULA)


def test_an_instance_norm_of_single_pixels_is_refused():
    with pytest.raises(FastmttError, match="of 8x8 images the last stage of a ResNet has 1x1"):
        make_network("ResNet18", image_shape=(3, 8, 8), classes=10)


class Stock:
    """What the zoo uses of timm."""

    def __init__(self, fixed):
        self.fixed, self.made = fixed, {}

    def is_model(self, name):
        return name == "tiny_net"

    def list_models(self):
        return ["tiny_net"]

    def get_pretrained_cfg(self, name):
        return types.SimpleNamespace(fixed_input_size=self.fixed)

    def create_model(self, name, **options):
        self.made = options
        return nn.Sequential(nn.Flatten(), nn.Linear(48, options["num_classes"]))


@pytest.mark.parametrize("fixed", [False, True])
def test_timms_networks_are_built_for_the_images(monkeypatch, fixed):
    stock = Stock(fixed)
    monkeypatch.setitem(sys.modules, "timm", stock)
    net = make_network("timm:tiny_net", image_shape=(3, 4, 4), classes=7)
    size = {"img_size": (4, 4)} if fixed else {}
    assert stock.made == {"in_chans": 3, "num_classes": 7, **size} and net.training
    with pytest.raises(FastmttError, match="did you mean timm:tiny_net"):
        make_network("timm:tinynet", image_shape=(3, 4, 4), classes=7)
    with pytest.raises(FastmttError, match=r"'timm:tiny_net' cannot take \[3, 5, 5\] images"):
        make_network("timm:tiny_net", image_shape=(3, 5, 5), classes=7)


def test_timm_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(FastmttError, match=r"not installed; pip install 'fastmtt\[timm\]'"):
        make_network("timm:resnet18", image_shape=(3, 32, 32), classes=10)
