"""IDC as a straight-line program: class after class, plain autograd's double backward.

Nothing of fastmtt: images are cut and enlarged, augmented and mixed by formulas written here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from straight_line import cross_entropy, leaf, logits
from torch import Tensor, nn


@dataclass
class Given:
    """What the program is given; its draws are functions of the numbers of what is under way.

    `weights(it)` are those of an outer iteration's network with their momentum, `real(number, c)`
    rows of real images for a match, `chosen(number, c)` which decoded ones are matched,
    `shared(number, c, x)` augments both, `batches(it, inner)` are the training's: rows, a function
    that augments, partners, box.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    lr: float
    train_images: Tensor
    train_labels: Tensor
    weights: Callable[[int], tuple[Tensor, Tensor | float]]
    real: Callable[[int, int], Tensor]
    batches: Callable[[int, int], list[tuple]]
    distance: Callable[[Tensor, Tensor], Tensor]
    parts: list[tuple[slice, int]]
    chosen: Callable[[int, int], Tensor] = lambda number, c: slice(None)
    shared: Callable[[int, int, Tensor], Tensor] = lambda number, c, x: x
    axes: set = field(default_factory=lambda: {4})


def decoded(images, parts):
    """Parts of the images [n,C,H,W], each cut into factor x factor cells, row by row, enlarged."""
    made = []
    for which, factor in parts:
        some = images[which]
        height, width = some.shape[-2:]
        down, right = -height % factor, -width % factor
        some = F.pad(some, (0, right, 0, down), value=0.5)
        rows, columns = some.shape[-2] // factor, some.shape[-1] // factor
        for i in range(factor):
            for j in range(factor):
                cell = some[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                made.append(F.interpolate(cell, (height, width), mode="bilinear"))
    return torch.cat(made)


def gradients(network, theta, x, y, axes, graph):
    at = leaf(theta)
    loss = cross_entropy(logits(network, at, x), y)
    (flat,) = torch.autograd.grad(loss, at, create_graph=graph)
    shapes = [p.shape for p in network.parameters()]
    parts = flat.split([shape.numel() for shape in shapes])
    return [g.view(shape) for g, shape in zip(parts, shapes, strict=True) if len(shape) in axes]


def step(network, theta, velocity, x, y, partners, box, lr, decay):
    """SGD with momentum 0.9 on a batch of which a box comes from each image's partner."""
    top, bottom, left, right = box
    x = x.clone()
    x[:, :, top:bottom, left:right] = x[partners][:, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (x.shape[2] * x.shape[3])
    at = leaf(theta)
    outputs = logits(network, at, x)
    loss = (1 - share) * cross_entropy(outputs, y) + share * cross_entropy(outputs, y[partners])
    gradient = torch.autograd.grad(loss, at)[0] + decay * theta
    velocity = 0.9 * velocity + gradient
    return theta - lr * velocity, velocity


def idc(given, o, *, rate, mean=0.5, std=0.25, frozen=0, iterations=3):
    """Outer iterations; `frozen` first rows are earlier stages'."""
    images, velocity = given.images, torch.zeros_like(given.images)
    for it in range(iterations):
        images = images.clamp(0, 1)
        (theta, momentum), distances = given.weights(it), []
        for inner in range(o.inner_loop):
            number = it * o.inner_loop + inner
            for c in range(3):
                stored = leaf(images)
                x = (decoded(stored[given.labels == c], given.parts) - mean) / std
                x = x[given.chosen(number, c)]
                real = given.train_images[given.real(number, c)]
                both = given.shared(number, c, torch.cat([real, x]))
                wanted, found = (
                    gradients(given.network, theta, batch, torch.full((len(batch),), c), *more)
                    for batch, more in (
                        (both[: len(real)], (given.axes, False)),
                        (both[len(real) :], (given.axes, True)),
                    )
                )
                pairs = zip(found, wanted, strict=True)
                loss = sum(given.distance(g, r.detach()) for g, r in pairs)
                gradient = torch.autograd.grad(loss, stored)[0]
                gradient[:frozen] = 0
                velocity = 0.5 * velocity + gradient
                images = images - rate * velocity
                distances.append(loss.detach())
            for rows, augment, partners, box in given.batches(it, inner):
                x, y = augment(given.train_images[rows]), given.train_labels[rows]
                theta, momentum = step(
                    *(given.network, theta, momentum, x, y, partners, box, o.net_lr, o.net_wd)
                )
        yield {"loss": torch.stack(distances).mean(), "images": images}
