"""Foreign networks: the field's architectures in a small size, and relatives of the ConvNet."""

import torch
import torch.nn.functional as F
from torch import nn


class PlainConvNet(nn.Module):
    """The published ConvNet's structure under another name, with layers of choice."""

    def __init__(self, depth=2, width=4, size=8, classes=3, channels=3, padding=1, **layer):
        super().__init__()
        make_conv = layer.get("conv", lambda i, o, p: nn.Conv2d(i, o, 3, padding=p))
        make_norm = layer.get("norm", lambda c: nn.GroupNorm(c, c, affine=True))
        make_relu = layer.get("relu", lambda: nn.ReLU(inplace=True))
        make_pool = layer.get("pool", lambda: nn.AvgPool2d(kernel_size=2, stride=2))
        layers, size = [], size + 2 * (padding - 1)
        for block in range(depth):
            layers += [
                make_conv(width if block else channels, width, 1 if block else padding),
                make_norm(width),
                make_relu(),
                make_pool(),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (size // 2**depth) ** 2, classes)

    def forward(self, x):
        out = self.features(x)
        return self.classifier(out.view(out.size(0), -1))


class AlexNet(nn.Module):
    """Widths 128, 192, 256, 192, 192 divided by 32; 16x16 images."""

    def __init__(self, classes=3):
        super().__init__()

        def block(c_in, c_out, kernel, pool):
            conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
            return [conv, nn.ReLU()] + [nn.MaxPool2d(2)] * pool

        self.features = nn.Sequential(
            *block(3, 4, 5, True),
            *block(4, 6, 5, True),
            *block(6, 8, 3, False),
            *block(8, 6, 3, False),
            *block(6, 6, 3, True),
        )
        self.fc = nn.Linear(6 * 2 * 2, classes)

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


class VGG11(nn.Module):
    """Widths divided by 16, instance norm as GroupNorm(C, C); 32x32 images."""

    def __init__(self, classes=3):
        super().__init__()
        layers, channels = [], 3
        for step in (4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"):
            if step == "M":
                layers += [nn.MaxPool2d(2, 2)]
                continue
            conv = nn.Conv2d(channels, step, 3, padding=1)
            layers += [conv, nn.GroupNorm(step, step), nn.ReLU()]
            channels = step
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1, 1))
        self.classifier = nn.Linear(32, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class _BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.GroupNorm(c_out, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.GroupNorm(c_out, c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.GroupNorm(c_out, c_out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """CIFAR style with instance norm, widths divided by 16; 32x32 images."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.GroupNorm(4, 4)
        blocks, channels = [], 4
        for width, stride in ((4, 1), (8, 2), (16, 2), (32, 2)):
            blocks += [_BasicBlock(channels, width, stride), _BasicBlock(width, width, 1)]
            channels = width
        self.layers = nn.Sequential(*blocks)
        self.classifier = nn.Linear(32, classes)

    def forward(self, x):
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.classifier(F.avg_pool2d(out, 4).flatten(1))


def seeded(make, seed=0):
    """A network with weights of its own seed, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()
