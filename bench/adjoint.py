"""The strongest opponent in PyTorch: the exact adjoint by ``torch.func``, compiled.

A matching step without a graph over its steps. The forward sweep keeps theta_t alone; the adjoint
sweep takes one tangent of the gradient a step (``jvp`` of ``grad``), whose primal value is g_t.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp

from bench.naive import ConvNet, Gradients, Reparametrised
from bench.worker import EAGER


class _Gradient(Protocol):
    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor: ...


class _Tangent(Protocol):
    def __call__(
        self, theta: Tensor, v: Tensor, x: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Verbs(NamedTuple):
    """What a step needs: the gradient, and (g, Hv, the tangent of the images' gradient)."""

    gradient: _Gradient
    tangent: _Tangent


@cache
def verbs(
    channels: int, size: int, classes: int, depth: int, width: int, precision: str, compiler: str
) -> Verbs:
    """Both verbs of a ConvNet, compiled once a process for the shapes of their first call.

    Args:
        channels: of an image.
        size: height and width of an image.
        classes: number of logits.
        depth: number of blocks.
        width: channels of a block.
        precision: of the convolutions, as in :class:`bench.naive.ConvNet`.
        compiler: a backend of ``torch.compile``, or ``EAGER`` for no compilation.
    """
    net = ConvNet(channels, size, classes, depth, width, precision)
    student = Reparametrised(net, channels_last=True)

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(student(x, theta), y)

    def tangent(theta: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def gradients(w: Tensor) -> tuple[Tensor, Tensor]:
            g, gx = grad(loss, argnums=(0, 1))(w, x, y)
            return g, gx

        (g, _), (hv, tangent_x) = jvp(gradients, (theta,), (v,))
        return g, hv, tangent_x

    both = grad(loss), tangent
    if compiler == EAGER:
        return Verbs(*both)
    return Verbs(*(torch.compile(f, backend=compiler, dynamic=False, fullgraph=True) for f in both))


@torch.no_grad()
def match(
    student: Verbs,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    indices: Sequence[Tensor],
) -> Gradients:
    """One matching step; arguments and result as :func:`bench.naive.match`."""
    thetas = [start]
    for rows in indices:
        thetas.append(thetas[-1] - lr * student.gradient(thetas[-1], images[rows], labels[rows]))
    difference = thetas.pop() - target
    scale = (start - target).square().sum()
    adjoint = 2 * difference / scale
    g_images, g_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for rows in reversed(indices):
        g, hv, gx = student.tangent(thetas.pop(), adjoint, images[rows], labels[rows])
        g_images.index_add_(0, rows, gx, alpha=-float(lr))
        g_lr -= g @ adjoint
        adjoint = adjoint - lr * hv
    return Gradients(difference.square().sum() / scale, g_images, g_lr)
