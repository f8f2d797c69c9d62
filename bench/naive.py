"""The opponent: a matching step and a training loop in plain PyTorch, as public programs run them.

The whole unroll is one autograd graph: each inner gradient is taken with ``create_graph=True`` and
one backward goes through all N steps, so memory grows with N. Nothing here uses fastmtt.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Gradients(NamedTuple):
    """What a matching step gives: the loss and its gradients in the images and the rate."""

    loss: Tensor
    images: Tensor
    lr: Tensor


class ConvNet(nn.Module):
    """depth x (3x3 convolution, instance norm as GroupNorm, ReLU, 2x2 averages), then linear.

    In precision "bf16" the whole forward runs under autocast, as people have it, and the logits
    return to the images' dtype; in "fp32" everything is computed in that.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        depth: int,
        width: int,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.precision = precision
        blocks = [
            nn.Sequential(
                nn.Conv2d(width if i else channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width, affine=True),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(kernel_size=2, stride=2),
            )
            for i in range(depth)
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width * (size >> depth) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.head(self.blocks(x).flatten(start_dim=1))
        return logits.to(x.dtype)


class Reparametrised(nn.Module):
    """A module called with its weights as one flat vector, in ``named_parameters()`` order."""

    def __init__(self, module: nn.Module, channels_last: bool = False) -> None:
        super().__init__()
        self.module, self.channels_last = module, channels_last
        self.spec = [(name, p.shape) for name, p in module.named_parameters()]

    def forward(self, x: Tensor, flat: Tensor) -> Tensor:
        pieces = flat.split([prod(shape) for _, shape in self.spec])
        weights = {name: w.view(s) for (name, s), w in zip(self.spec, pieces, strict=True)}
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            last = {
                n: w.contiguous(memory_format=torch.channels_last)
                for n, w in weights.items()
                if w.dim() == 4
            }
            weights.update(last)
        return torch.func.functional_call(self.module, weights, (x,))


def match(
    net: Reparametrised,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    indices: Sequence[Tensor],
) -> Gradients:
    """One matching step through the whole graph: L = |end - target|^2 / |start - target|^2."""
    images, lr = images.clone().requires_grad_(), lr.clone().requires_grad_()
    weights = [start.clone().requires_grad_()]
    for rows in indices:
        loss = F.cross_entropy(net(images[rows], weights[-1]), labels[rows])
        (step,) = torch.autograd.grad(loss, weights[-1], create_graph=True)
        weights.append(weights[-1] - lr * step)
    distance = F.mse_loss(weights[-1], target, reduction="sum")
    distance = distance / F.mse_loss(start, target, reduction="sum")
    distance.backward()
    return _gradients(distance, images, lr)


def match_first_order(
    net: Reparametrised,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    indices: Sequence[Tensor],
) -> Gradients:
    """TESLA's gradient from its definition: every theta_t but the sum's own steps is a constant.

    It stands here to judge our ``gradient="tesla"``, not to be timed: the graph of all steps is
    kept, which TESLA's own program avoids.
    """
    images, lr = images.clone().requires_grad_(), lr.clone().requires_grad_()
    theta, steps = start, torch.zeros_like(start)
    for rows in indices:
        weights = theta.detach().requires_grad_()
        loss = F.cross_entropy(net(images[rows], weights), labels[rows])
        (step,) = torch.autograd.grad(loss, weights, create_graph=True)
        steps = steps + lr * step
        theta = theta - (lr * step).detach()
    distance = (start - steps - target).square().sum() / (start - target).square().sum()
    distance.backward()
    return _gradients(distance, images, lr)


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Train ``net`` in place by SGD, one step for each tensor of row numbers."""
    optimiser = torch.optim.SGD(
        net.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    net.train()
    for rows in batches:
        loss = F.cross_entropy(net(images[rows]), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def count_correct(net: nn.Module, images: Tensor, labels: Tensor, batch: int = 256) -> int:
    """How many images ``net`` puts into their class."""
    net.eval()
    with torch.no_grad():
        pairs = zip(images.split(batch), labels.split(batch), strict=True)
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in pairs)


def _gradients(loss: Tensor, images: Tensor, lr: Tensor) -> Gradients:
    assert images.grad is not None and lr.grad is not None
    return Gradients(loss.detach(), images.grad, lr.grad)
