"""Flat vectors: the public order, the packed order, offsets and sizes of the published networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtt import FastmttError
from fastmtt.student import flatten_parameters, initial_weights, make_student
from fastmtt.student.zoo import ConvNet, known_names, make_network

COUNTS = [  # methods, table 2.4
    ("ConvNet", (3, 32, 32), 10, 320_010),
    ("ConvNet", (3, 32, 32), 100, 504_420),
    ("ConvNet", (1, 28, 28), 10, 317_706),
    ("ConvNetD1", (3, 32, 32), 10, 331_530),
    ("ConvNetD2", (3, 32, 32), 10, 233_610),
    ("ConvNetD3", (3, 32, 32), 10, 320_010),
    ("ConvNetD4", (3, 32, 32), 10, 452_490),
    ("ConvNetD5", (3, 32, 32), 10, 596_490),
    ("ConvNetD4", (3, 64, 64), 200, 857_160),
    ("ConvNetD4", (3, 64, 64), 1000, 2_496_360),
    ("ConvNetD5", (3, 128, 128), 10, 615_690),
    ("ConvNetD6", (3, 256, 256), 10, 763_530),
    ("ConvNetW32", (3, 32, 32), 10, 24_714),
    ("ConvNetW64", (3, 32, 32), 10, 86_282),
    ("ConvNetW256", (3, 32, 32), 10, 1_229_834),
    ("ConvNetW512", (3, 32, 32), 10, 4_818_954),
    ("ConvNetW1024", (3, 32, 32), 10, 19_075_082),
    ("ConvNetKIP", (3, 32, 32), 10, 19_068_938),
    ("ConvNetW128", (3, 32, 32), 10, 320_010),
    *((f"ConvNet{kind}", (3, 32, 32), 10, 320_010) for kind in ("BN", "GN", "IN", "MP", "AP")),
    *((f"ConvNet{kind}", (3, 32, 32), 10, 320_010) for kind in ("AS", "AR", "AL")),
    ("ConvNetNN", (3, 32, 32), 10, 319_242),
    ("ConvNetLN", (3, 32, 32), 10, 663_306),
    ("ConvNetNP", (3, 32, 32), 10, 1_610_250),
    ("ConvNetD4BN", (3, 64, 64), 200, 857_160),
    ("MLP", (3, 32, 32), 10, 411_146),
    ("MLP", (1, 28, 28), 10, 118_282),
    ("LeNet", (3, 32, 32), 10, 62_006),
    ("LeNet", (1, 28, 28), 10, 61_706),
    ("AlexNet", (3, 32, 32), 10, 1_872_202),
    ("AlexNet", (3, 32, 32), 100, 2_148_772),
    *((name, (3, 32, 32), 10, 9_231_114) for name in ("VGG11", "VGG11BN")),
    *((name, (3, 32, 32), 100, 9_277_284) for name in ("VGG11", "VGG11BN")),
    *((name, (3, 32, 32), 10, 11_173_962) for name in ("ResNet18", "ResNet18BN")),
    *((name, (3, 32, 32), 100, 11_220_132) for name in ("ResNet18", "ResNet18BN")),
    *((name, (3, 32, 32), 10, 11_250_762) for name in ("ResNet18_AP", "ResNet18BN_AP")),
    *((name, (3, 32, 32), 10, 4_903_242) for name in ("ResNet10", "ResNet10BN")),
    ("MLP_Tiny", (3, 64, 64), 200, 1_615_304),
    ("LeNet_Tiny", (3, 64, 64), 200, 78_156),
    ("AlexNet_Tiny", (3, 64, 64), 200, 2_456_072),
    ("VGG11_Tiny", (3, 64, 64), 200, 9_328_584),
    *((name, (3, 64, 64), 200, 11_271_432) for name in ("ResNet18_Tiny", "ResNet18BN_Tiny")),
    ("ConvNet-3", (3, 32, 32), 10, 320_010),
    ("ConvNet-3", (3, 32, 32), 100, 504_420),
    ("ResNetAP-10", (3, 224, 224), 10, 4_910_922),
    ("ResNetAP-10", (3, 224, 224), 100, 4_957_092),
    ("ResNetAP-10", (3, 64, 64), 200, 5_000_712),
    ("ResNetAP-18", (3, 224, 224), 10, 11_181_642),
    *((name, (3, 32, 32), 10, 1_228_970) for name in ("ResNet-10", "ResNet10-BN")),
    *((name, (3, 32, 32), 10, 2_797_610) for name in ("ResNet-18", "ResNet18-BN")),
    ("ResNet18-BN", (3, 224, 224), 10, 11_181_642),
    ("DenseNet", (3, 32, 32), 10, 1_000_618),
    ("EfficientNet-B0", (3, 224, 224), 10, 4_020_358),
]

OFFSETS = {  # methods, section 1.6
    "features.0.weight": (0, 3456),
    "features.0.bias": (3456, 3584),
    "features.1.weight": (3584, 3712),
    "features.1.bias": (3712, 3840),
    "features.4.weight": (3840, 151296),
    "features.4.bias": (151296, 151424),
    "features.5.weight": (151424, 151552),
    "features.5.bias": (151552, 151680),
    "features.8.weight": (151680, 299136),
    "features.8.bias": (299136, 299264),
    "features.9.weight": (299264, 299392),
    "features.9.bias": (299392, 299520),
    "classifier.weight": (299520, 320000),
    "classifier.bias": (320000, 320010),
}


@pytest.mark.parametrize(("name", "image_shape", "classes", "count"), COUNTS)
def test_parameter_counts(name, image_shape, classes, count):
    with torch.device("meta"):
        net = make_network(name, image_shape=image_shape, classes=classes)
    assert sum(p.numel() for p in net.parameters()) == count


def test_every_published_name_is_counted():
    assert {name for name, *_ in COUNTS} >= set(known_names()) - {"ConvNetD7", "ConvNetD8"}


def test_offsets_of_the_standard_convnet():
    student = make_student(
        make_network("ConvNet", image_shape=(3, 32, 32), classes=10), (3, 32, 32)
    )
    offset, found = 0, {}
    for name, shape in zip(student.names, student.shapes, strict=True):
        end = offset + torch.Size(shape).numel()
        found[name], offset = (offset, end), end
    assert found == OFFSETS and student.size == 320_010
    assert student.shapes[0] == (128, 3, 3, 3) and student.shapes[-2] == (10, 2048)


BEGINNINGS = {  # worked out by hand: name, end
    "ResNet18": [
        ("conv1.weight", 1728),
        ("bn1.weight", 1792),
        ("bn1.bias", 1856),
        ("layer1.0.conv1.weight", 38720),
        ("layer1.0.bn1.weight", 38784),
    ],
    "VGG11BN": [
        ("features.0.weight", 1728),
        ("features.0.bias", 1792),
        ("features.1.weight", 1856),
        ("features.1.bias", 1920),
        ("features.4.weight", 75648),
    ],
    "AlexNet": [
        ("features.0.weight", 9600),
        ("features.0.bias", 9728),
        ("features.3.weight", 624128),
        ("features.3.bias", 624320),
        ("features.6.weight", 1066688),
    ],
    "LeNet": [
        ("features.0.weight", 450),
        ("features.0.bias", 456),
        ("features.3.weight", 2856),
        ("features.3.bias", 2872),
        ("fc_1.weight", 50872),
    ],
    "MLP": [("fc_1.weight", 393216), ("fc_1.bias", 393344), ("fc_2.weight", 409728)],
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_offsets_of_the_other_networks(name):
    with torch.device("meta"):
        parameters = make_network(name, image_shape=(3, 32, 32), classes=10).named_parameters()
    offset = 0
    for (found, p), (wanted, end) in zip(parameters, BEGINNINGS[name], strict=False):
        offset += p.numel()
        assert (found, offset) == (wanted, end)


@pytest.mark.parametrize("name", known_names())
def test_flat_order_is_the_published_walk_over_the_modules(name):
    """Module by module, each one's own parameters, as the published programs gather them."""
    size = 256 if name in ("ConvNetD6", "ConvNetD7", "ConvNetD8") else 64
    with torch.device("meta"):
        net = make_network(name, image_shape=(3, size, size), classes=10)
    walk = [
        f"{path}.{key}"
        for path, module in net.named_modules()
        for key, _ in module.named_parameters(recurse=False)
    ]
    assert walk == [key for key, _ in net.named_parameters()]


def test_flat_order_is_that_of_parameters():
    net = ConvNet((3, 8, 8), 3, depth=2, width=4)
    want = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
    assert torch.equal(flatten_parameters(net), want)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(8, 13), st.integers(8, 13), st.integers(1, 5)
)
def test_pack_and_unpack_are_inverse(depth, width, height, column, classes):
    shape = (2, height, column)
    student = make_student(ConvNet(shape, classes, depth=depth, width=width), shape)
    flat = torch.arange(2.0 * student.size).view(2, -1)
    packed = student.pack(flat)
    assert torch.equal(student.unpack(packed), flat)
    assert torch.equal(packed.sort(1).values, flat)
    mask = flat[0] % 3 == 0
    assert torch.equal(student.pack(mask), packed[0] % 3 == 0)


def test_packed_order_is_kernel_rows_and_pixels_first():
    net = ConvNet((3, 8, 12), 4, depth=2, width=5)
    student = make_student(net, (3, 8, 12))
    packed = student.pack(flatten_parameters(net))
    w = net.features[0].weight
    assert torch.equal(packed[: w.numel()].view(3, 3, 3, 5), w.permute(2, 3, 1, 0))
    rows = packed[-4 * 5 * 2 * 3 - 4 : -4].view(4, 2, 3, 5)
    assert torch.equal(rows, net.classifier.weight.view(4, 5, 2, 3).permute(0, 2, 3, 1))
    assert torch.equal(packed[-4:], net.classifier.bias)


def test_initial_weights_depend_on_the_key_alone():
    def make():
        return ConvNet((3, 8, 8), 3, depth=1, width=4)

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = initial_weights(make, 3, "expert", 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(initial_weights(make, 3, "expert", 0), first)
    others = [
        initial_weights(make, *key) for key in ((4, "expert", 0), (3, "eval", 0), (3, "expert", 1))
    ]
    assert not any(torch.equal(other, first) for other in others)
    assert first.dtype == torch.float32 and first.shape == (flatten_parameters(make()).numel(),)
    assert initial_weights(lambda: make().double(), 3, "expert", 0).dtype == torch.float32


def test_initial_weights_leave_other_devices_alone(monkeypatch):
    def refuse(seed):
        raise AssertionError("the GPUs' generators were seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    initial_weights(lambda: ConvNet((3, 8, 8), 3, depth=1, width=2), 0, "expert", 0)


def test_networks_by_name():
    net = make_network("ConvNetD2W32", image_shape=(3, 16, 16), classes=5)
    assert len(net.features) == 8 and net.features[0].out_channels == 32
    assert net.features[0].padding == (1, 1) and net.classifier.in_features == 32 * 16
    mnist = make_network("ConvNet", image_shape=(1, 28, 28), classes=10)
    assert mnist.features[0].padding == (3, 3) and mnist.features[4].padding == (1, 1)
    grey = make_network("ConvNet", image_shape=(1, 32, 32), classes=10)
    assert grey.features[0].padding == (1, 1)
    norm = net.features[1]
    assert norm.num_groups == norm.num_channels == 32 and norm.eps == 1e-5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ConvNetd3", "network 'ConvNetd3' is not known; did you mean ConvNetD3"),
        ("ResNet99x", "network 'ResNet99x' is not known; did you mean ResNet18"),
        ("VGG11Bn", "network 'VGG11Bn' is not known; did you mean VGG11BN"),
        ("Perceiver", "network 'Perceiver' is not known; for example ConvNet"),
        ("ConvNetMPBN", "is not known"),
        ("ConvNetW6GN", "group norm has 4 groups, and 6 channels cannot be divided so"),
        ("VGG11", "of 16x16 images nothing is left before the end of a VGG11"),
        ("ConvNetD0", "is not known"),
        ("ConvNetD5", "depth 5 halves its images 5 times; 16x16 images allow at most depth 4"),
    ],
)
def test_unknown_and_impossible_networks(name, message):
    with pytest.raises(FastmttError, match=message):
        make_network(name, image_shape=(3, 16, 16), classes=10)
