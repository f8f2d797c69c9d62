"""From features to the loss: the linear classifier with cross-entropy or any loss function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from fastmtt import ops

LossFunction = Callable[[Tensor, Tensor], Tensor]
Gradients = tuple[Tensor, Tensor, Tensor]
Tangents = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]


class Head(Protocol):
    """Features [S,B,D], classifier W [S,K,D] and b [S,K], labels: the loss and its derivatives."""

    separable: bool  # whether a batch's loss is the mean over its images

    def gradient(self, f: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Gradients]:
        """Loss [S] and cotangents of (f, w, b)."""
        ...

    def tangent(
        self,
        f: Tensor,
        f_dot: Tensor,
        w: Tensor,
        w_dot: Tensor,
        b: Tensor,
        b_dot: Tensor,
        y: Tensor,
    ) -> Tangents:
        """Tangents of the cotangents of (f, w, b, y), and the cotangent of f itself."""
        ...


class CrossEntropyHead:
    """Softmax cross-entropy with class indices or probabilities, mean over the batch: our ops."""

    separable = True

    def gradient(self, f: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Gradients]:
        """See :class:`Head`."""
        loss, logp = ops.linear_xent(f, w, b, y)
        gf, gw, gb, _ = ops.linear_xent_backward(f, w, logp, y, (True, True))
        return loss, (gf, gw, gb)

    def tangent(
        self,
        f: Tensor,
        f_dot: Tensor,
        w: Tensor,
        w_dot: Tensor,
        b: Tensor,
        b_dot: Tensor,
        y: Tensor,
    ) -> Tangents:
        """See :class:`Head`."""
        _, logp = ops.linear_xent(f, w, b, y)
        _, logp_dot = ops.linear_xent_jvp(f, f_dot, w, w_dot, b_dot, logp, y)
        gf_dot, gw_dot, gb_dot, gy_dot, gf = ops.linear_xent_backward_jvp(
            f, f_dot, w, w_dot, logp, logp_dot, y, (True, True, True)
        )
        return gf_dot, gw_dot, gb_dot, gy_dot if y.is_floating_point() else None, gf


class LossHead:
    """Any ``loss_fn(logits [B,K], labels) -> scalar``, twice differentiable, student by student."""

    separable = False

    def __init__(self, loss_fn: LossFunction) -> None:
        """Keep the caller's loss function."""
        self.loss_fn = loss_fn

    def gradient(self, f: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Gradients]:
        """See :class:`Head`."""
        logits = f @ w.mT + b[:, None]
        pairs = [self._loss_gradient(z, t) for z, t in zip(logits, y, strict=True)]
        g = torch.stack([gradient for _, gradient in pairs])
        return torch.stack([loss for loss, _ in pairs]), (g @ w, g.mT @ f, g.sum(1))

    def tangent(
        self,
        f: Tensor,
        f_dot: Tensor,
        w: Tensor,
        w_dot: Tensor,
        b: Tensor,
        b_dot: Tensor,
        y: Tensor,
    ) -> Tangents:
        """See :class:`Head`."""
        logits = f @ w.mT + b[:, None]
        logits_dot = f_dot @ w.mT + f @ w_dot.mT + b_dot[:, None]
        triples = [
            self._loss_tangent(z, z_dot, t)
            for z, z_dot, t in zip(logits, logits_dot, y, strict=True)
        ]
        g = torch.stack([t[0] for t in triples])
        g_dot = torch.stack([t[1] for t in triples])
        gy_dot = torch.stack([t[2] for t in triples]) if y.is_floating_point() else None
        gf_dot = g_dot @ w + g @ w_dot
        return gf_dot, g_dot.mT @ f + g.mT @ f_dot, g_dot.sum(1), gy_dot, g @ w

    def _loss_gradient(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = logits.detach().requires_grad_()
            loss = scalar_loss(self.loss_fn, z, y.detach())
            (g,) = torch.autograd.grad(loss, z)
        return loss.detach(), g

    def _loss_tangent(
        self, logits: Tensor, logits_dot: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the loss in the logits, and the gradient in (logits, y) of <it, z_dot>."""
        with torch.enable_grad():
            z = logits.detach().requires_grad_()
            labels = y.detach().requires_grad_(y.is_floating_point())
            loss = scalar_loss(self.loss_fn, z, labels)
            (g,) = torch.autograd.grad(loss, z, create_graph=True)
            if not g.requires_grad:  # a loss linear in the logits has no curvature
                return g, torch.zeros_like(z), torch.zeros_like(labels)
            sources = (z, labels) if labels.requires_grad else (z,)
            tangents = torch.autograd.grad(
                g, sources, logits_dot, allow_unused=True, materialize_grads=True
            )
        return g.detach(), tangents[0], tangents[-1]


def scalar_loss(loss_fn: LossFunction, logits: Tensor, y: Tensor) -> Tensor:
    """The caller's loss of one batch; ValueError unless it is one number."""
    loss = loss_fn(logits, y)
    if loss.dim() != 0:
        raise ValueError(
            f"loss_fn must return one number a batch, got a tensor of shape "
            f"{tuple(loss.shape)}; take its mean"
        )
    return loss


def make_head(loss_fn: LossFunction | None) -> Head:
    """The compiled head for cross-entropy (``None``), the general one for any other loss."""
    return CrossEntropyHead() if loss_fn is None else LossHead(loss_fn)
