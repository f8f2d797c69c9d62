"""A match of IDC's: every class's gradient on real and on synthetic images, at equal weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import naive
from bench.problem import CHANNELS, CLASSES, DEPTH, IMAGE
from fastmtt.gradmatch import match_gradients
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network

SHAPE = CHANNELS, IMAGE, IMAGE


class Match(NamedTuple):
    """Batches of every class, without augmentation; distance "mse" over convolutions' weights."""

    real: int
    synthetic: int
    width: int
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"real{self.real}-synthetic{self.synthetic}-width{self.width}-{self.precision}"


class Batches(NamedTuple):
    """Images [K,B,C,H,W] of each class, real and synthetic, and weights [P]."""

    real: Tensor
    synthetic: Tensor
    weights: Tensor

    def to(self, dtype: torch.dtype) -> Batches:
        """The same in another type."""
        return Batches(*(t.to(dtype) for t in self))


def make_batches(match: Match, seed: int = 0) -> Batches:
    """Noise round a shade of each class, and a fresh network's weights."""
    make = torch.Generator().manual_seed(seed)
    shades = torch.randn(CLASSES, 1, CHANNELS, 1, 1, generator=make)
    counts = match.real, match.synthetic
    real, synthetic = (
        shades + torch.randn(CLASSES, count, *SHAPE, generator=make) for count in counts
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = naive.ConvNet(CHANNELS, IMAGE, CLASSES, DEPTH, match.width)
    return Batches(real, synthetic, nn.utils.parameters_to_vector(net.parameters()).detach())


def prepare(name: str, **sizes: Any) -> Callable[[], tuple[Tensor, Tensor]]:
    """A contender by its name and the fields of a match, after a tiny one."""
    small = Match(2, 2, 8, sizes["precision"])
    contender(name, small, make_batches(small))()
    match = Match(**sizes)
    return contender(name, match, make_batches(match))


def contender(
    name: str, match: Match, batches: Batches, *, channels_last: bool = False
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Distances [K] and their gradients in the synthetic images [K,b,C,H,W], by a contender.

    Args:
        name: "ours", or "naive": double backward, one class after another.
        match: the sizes.
        batches: of what.
        channels_last: the layout in which the naive one computes.
    """
    if name == "naive":
        layout = torch.channels_last if channels_last else torch.contiguous_format
        shape = CHANNELS, IMAGE, CLASSES, DEPTH, match.width, match.precision
        net = naive.ConvNet(*shape).to(batches.weights.dtype)
        nn.utils.vector_to_parameters(batches.weights, net.parameters())
        return lambda: _class_by_class(net.to(memory_format=layout), batches, layout)
    own = make_network(f"ConvNetD{DEPTH}W{match.width}", image_shape=SHAPE, classes=CLASSES)
    precision = None if batches.weights.dtype == torch.float64 else match.precision
    student = make_student(own, SHAPE, precision=precision)
    labels = torch.arange(CLASSES)[:, None]
    real, synthetic = (
        (images, labels.expand(-1, images.shape[1])) for images in (batches.real, batches.synthetic)
    )
    theta = student.pack(batches.weights)
    return lambda: match_gradients(student, theta, real, synthetic, "mse")


def _class_by_class(
    net: nn.Module, batches: Batches, layout: torch.memory_format
) -> tuple[Tensor, Tensor]:
    weights = list(net.parameters())
    losses, gradients = [], []
    for label, (real, synthetic) in enumerate(zip(batches.real, batches.synthetic, strict=True)):
        x = real.contiguous(memory_format=layout)
        images = synthetic.contiguous(memory_format=layout).requires_grad_()
        wanted = torch.autograd.grad(_loss(net, x, label), weights)
        found = torch.autograd.grad(_loss(net, images, label), weights, create_graph=True)
        pairs = zip(found, wanted, strict=True)
        loss = torch.stack([(g - r).square().sum() for g, r in pairs if g.dim() > 2]).sum()
        gradients += torch.autograd.grad(loss, [images])
        losses.append(loss.detach())
    return torch.stack(losses), torch.stack(gradients)


def _loss(net: nn.Module, images: Tensor, label: int) -> Tensor:
    return F.cross_entropy(net(images), torch.full((len(images),), label))
