"""Gradient matching: synthetic images whose gradient is the real ones' (IDC, arXiv 2205.14959).

On the verbs of the sweeps: with g and r the gradients of a synthetic and a real batch at the same
weights and v = d distance(g, r) / dg, the distance's gradient in the synthetic images is the
tangent of g's own images in direction v. Every class is a student of its own, at equal weights, so
all classes are matched at once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmtt.student import Student

# Tensor by tensor: of gradients [S,*shape] and what they should be, distances [S].
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda g, r: (g - r).square().flatten(1).sum(1),
    "l1": lambda g, r: (g - r).abs().flatten(1).sum(1),
    "l1_mean": lambda g, r: (g - r).abs().flatten(2).mean(2).sum(1),
    "cos": lambda g, r: _one_minus_cosine(g.flatten(2), r.flatten(2)).sum(1),
}
_SMALL = 1e-6  # the published program's, beside the product of norms


class MatchSizes(NamedTuple):
    """The sizes of a match of gradients.

    Attributes:
        classes: K.
        at_once: of these, those matched side by side.
        stored: images a class of the set.
        decoded: training images that they give.
        real: images of a class's real batch.
        synthetic: training images of a class that are matched.
        net_batch: images in a batch of the networks whose gradients are matched.
        image_shape: a training image's (C, H, W).
    """

    classes: int
    at_once: int
    stored: int
    decoded: int
    real: int
    synthetic: int
    net_batch: int
    image_shape: tuple[int, ...]


def match_gradients(
    student: Student,
    theta: Tensor,
    real: tuple[Tensor, Tensor],
    synthetic: tuple[Tensor, Tensor],
    metric: str,
    *,
    bias: bool = False,
    fc: bool = False,
) -> tuple[Tensor, Tensor]:
    """Distances between gradients on synthetic and real batches, and their gradients in images.

    Args:
        student: the network.
        theta: its packed weights [P], or one a batch [S,P].
        real: images [S,B,C,H,W] with labels [S,B]; here S counts classes.
        synthetic: images [S,b,C,H,W] with labels [S,b] or [S,b,K].
        metric: a name in ``METRICS``; distances of the weights' tensors are summed.
        bias: whether tensors of one axis count, biases and norms.
        fc: whether tensors of two axes count, a classifier's weights.

    Returns:
        Distances [S], and each one's gradient in its synthetic images [S,b,C,H,W].
    """
    images, labels = synthetic
    weights = theta.expand(len(images), -1).contiguous()
    _, wanted = student.gradient(weights, *real)
    _, found = student.gradient(weights, images, labels)
    loss, v = distances(student, student.unpack(found), student.unpack(wanted), metric, bias, fc)
    _, gx, _ = student.tangent(student.pack(v), weights, images, labels, needs={"x"})
    assert gx is not None
    return loss, gx


def distances(
    student: Student, g: Tensor, wanted: Tensor, metric: str, bias: bool, fc: bool
) -> tuple[Tensor, Tensor]:
    """Distances [S] of gradients [S,P] (public order) to the wanted ones, and v [S,P].

    Tensors of more than two axes always count; the rest of v is zero.
    """
    counted = {1: bias, 2: fc}
    loss, v, offset = g.new_zeros(len(g)), torch.zeros_like(g), 0
    for shape in student.shapes:
        part = slice(offset, offset + prod(shape))
        offset += prod(shape)
        if not counted.get(len(shape), True):
            continue
        with torch.enable_grad():
            leaf = g[:, part].detach().requires_grad_()
            view: Any = (len(g), *shape) if len(shape) > 1 else (len(g), *shape, 1)
            found = METRICS[metric](leaf.view(view), wanted[:, part].view(view))
            (v[:, part],) = torch.autograd.grad(found.sum(), leaf)
        loss += found.detach()
    return loss, v


def _one_minus_cosine(g: Tensor, r: Tensor) -> Tensor:
    """Of each output channel's weights [S,O,n]."""
    return 1 - (g * r).sum(2) / (g.norm(dim=2) * r.norm(dim=2) + _SMALL)
