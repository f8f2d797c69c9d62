"""The ops in plain torch, any floating dtype: what every compiled kernel is measured against.

Shapes, with S students and B images each: activations ``[S,B,H,W,C]``, convolution weights
``[S,3,3,Cin,Cout]``, affine parameters ``[S,C]``, ``rstd`` ``[S,B,C]``, flat vectors ``[S,P]``.
A dot in a name (``a_dot``) marks a tangent: the derivative along one direction. A result that was
not asked for comes back empty, with shape ``[0]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastmtt.ops.reference_block import (
    conv_block,
    conv_block_backward,
    conv_block_backward_jvp,
    conv_block_jvp,
)
from fastmtt.ops.reference_dsa import dsa, dsa_transpose

__all__ = [
    "conv_block",
    "conv_block_backward",
    "conv_block_jvp",
    "conv_block_backward_jvp",
    "linear_xent",
    "linear_xent_backward",
    "linear_xent_jvp",
    "linear_xent_backward_jvp",
    "sgd_update",
    "sgd_momentum",
    "dot",
    "sqdist",
    "dsa",
    "dsa_transpose",
    "gsam_perturb",
    "gsam_combine",
]

# --- the head: linear classifier with softmax cross-entropy, mean over the batch ---------------


def linear_xent(f: Tensor, w: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """f [S,B,D], w [S,K,D], b [S,K], y int64 [S,B] or probabilities [S,B,K]: loss [S], log p."""
    logp = F.log_softmax(f @ w.mT + b[:, None], dim=-1)
    return -(_target(y, logp) * logp).sum(-1).mean(-1), logp


def linear_xent_backward(
    f: Tensor, w: Tensor, logp: Tensor, y: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cotangents (f, w, b, y) of each student's loss; ``needs`` = (f, parameters)."""
    need_f, need_parameters = needs
    g = _logit_gradient(logp, y)
    gf = g @ w if need_f else f.new_empty(0)
    gy = -logp / f.shape[1] if y.is_floating_point() else f.new_empty(0)
    if not need_parameters:
        return gf, f.new_empty(0), f.new_empty(0), gy
    return gf, g.mT @ f, g.sum(1), gy


def linear_xent_jvp(
    f: Tensor, f_dot: Tensor, w: Tensor, w_dot: Tensor, b_dot: Tensor, logp: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """Tangents of the loss [S] and of the log-probabilities [S,B,K]."""
    logit_dot = f_dot @ w.mT + f @ w_dot.mT + b_dot[:, None]
    logp_dot = logit_dot - (logp.exp() * logit_dot).sum(-1, keepdim=True)
    return -(_target(y, logp) * logp_dot).sum(-1).mean(-1), logp_dot


def linear_xent_backward_jvp(
    f: Tensor,
    f_dot: Tensor,
    w: Tensor,
    w_dot: Tensor,
    logp: Tensor,
    logp_dot: Tensor,
    y: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tangent of ``linear_xent_backward``: (gf_dot, gw_dot, gb_dot, gy_dot, gf).

    ``needs`` = (gf_dot, parameters, gf).
    """
    need_f_dot, need_parameters, need_f = needs
    weight = y.sum(-1, keepdim=True) if y.is_floating_point() else 1.0
    g = _logit_gradient(logp, y)
    g_dot = logp.exp() * logp_dot * weight / f.shape[1]
    gf_dot = g_dot @ w + g @ w_dot if need_f_dot else f.new_empty(0)
    gf = g @ w if need_f else f.new_empty(0)
    gy_dot = -logp_dot / f.shape[1] if y.is_floating_point() else f.new_empty(0)
    if not need_parameters:
        return gf_dot, f.new_empty(0), f.new_empty(0), gy_dot, gf
    return gf_dot, g_dot.mT @ f + g.mT @ f_dot, g_dot.sum(1), gy_dot, gf


def _target(y: Tensor, logp: Tensor) -> Tensor:
    if y.is_floating_point():
        return y
    return torch.zeros_like(logp).scatter_(-1, y[..., None], 1.0)


def _logit_gradient(logp: Tensor, y: Tensor) -> Tensor:
    # learned labels need not sum to one: the softmax's share carries their sum
    target = _target(y, logp)
    return (logp.exp() * target.sum(-1, keepdim=True) - target) / logp.shape[1]


# --- flat vectors ------------------------------------------------------------------------------


def sgd_update(theta: Tensor, g: Tensor, lr: Tensor) -> Tensor:
    """theta - lr * g, with lr a scalar or one a student [S]."""
    return theta - lr.reshape(-1, 1) * g


def sgd_momentum(
    theta: Tensor, g: Tensor, velocity: Tensor, lr: Tensor, momentum: float, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """SGD as PyTorch's optimiser has it, with lr a scalar or [S]: the new theta and velocity.

    The new velocity is momentum * velocity + g + weight_decay * theta, the step lr times that.
    """
    velocity = momentum * velocity + (g + weight_decay * theta)
    return theta - lr.reshape(-1, 1) * velocity, velocity


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner product, [S,P] x [S,P] -> [S]."""
    return (a * b).sum(-1)


def sqdist(theta: Tensor, target: Tensor, keep: Tensor | None) -> Tensor:
    """Row-wise squared distance [S] over the parameters kept (bool [P] or [S,P])."""
    d = (theta - target).square()
    return d.sum(-1) if keep is None else (d * keep).sum(-1)


def gsam_perturb(theta: Tensor, g: Tensor, rho: float, adaptive: bool) -> Tensor:
    """The weights GSAM climbs to before its second gradient (methods: FTD's experts)."""
    scale = theta.abs() if adaptive else torch.ones_like(theta)
    return theta + rho * scale.square() * g / (_norm(scale * g) + 1e-12)


def gsam_combine(g: Tensor, g_perturbed: Tensor, alpha: float) -> Tensor:
    """GSAM's direction: g_perturbed less alpha times g's part orthogonal to it."""
    norm, norm_perturbed = _norm(g), _norm(g_perturbed)
    inner = torch.stack([(a * b).sum() for a, b in zip(g, g_perturbed, strict=True)])[:, None]
    cosine = inner / (norm_perturbed * norm + 1e-12)
    orthogonal = g - cosine * norm * g_perturbed / (norm_perturbed + 1e-12)
    return g_perturbed - alpha * orthogonal


def _norm(rows: Tensor) -> Tensor:
    """[S,1]; row by row, as threads would add up many rows in another order than one."""
    return torch.stack([row.norm() for row in rows])[:, None]
