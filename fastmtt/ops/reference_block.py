"""The ConvNet block in plain torch: conv3x3, instance norm, ReLU, 2x2 average pool.

Shapes as in :mod:`fastmtt.ops.reference`. ``bf16`` rounds what a convolution multiplies to
bfloat16 and sums in full; a convolution of fewer than 16 input channels, as a network's first,
stays in float32, because meta-gradients would err more than twice as much as autocast's with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5  # nn.GroupNorm's default, the only one the ConvNet family uses
BF16_CHANNELS = 16  # from so many input channels on, bf16 has an effect


def conv_block(
    a: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, bf16: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """One block; returns the pooled output, the normalised convolution and its 1/std."""
    xhat, rstd = _normalise(_conv(a, w, bf16))
    n = _affine(xhat, gamma, beta)
    return _pool(n * _active(n)), xhat, rstd


def conv_block_backward(
    gp: Tensor,
    a: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    needs: Sequence[bool],
    bf16: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cotangents of (a, w, gamma, beta); ``needs`` = (a, parameters)."""
    need_a, need_parameters = needs
    gn = _unpool(gp, xhat) * _active(_affine(xhat, gamma, beta))
    _, gz = _norm_backward(gn * _wide(gamma), xhat, rstd)
    ga, gw = _conv_backward(gz, a, w, need_a, need_parameters, bf16)
    if not need_parameters:
        return ga, gw, gw.new_empty(0), gw.new_empty(0)
    return ga, gw, (gn * xhat).sum((1, 2, 3)), gn.sum((1, 2, 3))


def conv_block_jvp(
    a: Tensor,
    a_dot: Tensor | None,
    w: Tensor,
    w_dot: Tensor,
    gamma: Tensor,
    gamma_dot: Tensor,
    beta: Tensor,
    beta_dot: Tensor,
    xhat: Tensor | None,
    rstd: Tensor | None,
    bf16: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Primal and tangent: (p, p_dot, xhat_dot, rstd_dot, xhat, rstd).

    ``a_dot=None`` stands for zero. The last two are empty where they were given.
    """
    if xhat is None or rstd is None:
        new_xhat, new_rstd = xhat, rstd = _normalise(_conv(a, w, bf16))
    else:
        new_xhat, new_rstd = xhat.new_empty(0), xhat.new_empty(0)
    z_dot = _conv(a, w_dot, bf16)
    if a_dot is not None:
        z_dot += _conv(a_dot, w, bf16)
    correlation = _plane_mean(xhat * z_dot)
    rstd_wide = _planes(rstd)
    xhat_dot = rstd_wide * (z_dot - _plane_mean(z_dot) - xhat * correlation)
    rstd_dot = (-rstd_wide.square() * correlation).flatten(2)
    n = _affine(xhat, gamma, beta)
    active = _active(n)
    n_dot = _affine(xhat, gamma_dot, beta_dot) + xhat_dot * _wide(gamma)
    p, p_dot = _pool(n * active), _pool(n_dot * active)
    return p, p_dot, xhat_dot, rstd_dot, new_xhat, new_rstd


def conv_block_backward_jvp(
    gp: Tensor,
    gp_dot: Tensor,
    a: Tensor,
    a_dot: Tensor | None,
    w: Tensor,
    w_dot: Tensor,
    gamma: Tensor,
    gamma_dot: Tensor,
    beta: Tensor,
    xhat: Tensor,
    rstd: Tensor,
    xhat_dot: Tensor,
    rstd_dot: Tensor,
    needs: Sequence[bool],
    bf16: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The tangent of ``conv_block_backward``: (ga_dot, gw_dot, ggamma_dot, gbeta_dot, ga).

    ``needs`` = (ga_dot, parameters, ga). beta_dot does not occur: it only moves the ReLU's kink.
    """
    need_a_dot, need_parameters, need_a = needs
    active = _active(_affine(xhat, gamma, beta))
    gn, gn_dot = _unpool(gp, xhat) * active, _unpool(gp_dot, xhat) * active
    g, g_dot = gn * _wide(gamma), gn_dot * _wide(gamma) + gn * _wide(gamma_dot)
    inner, gz = _norm_backward(g, xhat, rstd)
    inner_dot = (
        g_dot
        - _plane_mean(g_dot)
        - xhat_dot * _plane_mean(g * xhat)
        - xhat * _plane_mean(g_dot * xhat + g * xhat_dot)
    )
    gz_dot = _planes(rstd_dot) * inner + _planes(rstd) * inner_dot

    ga_dot, gw_dot = _conv_backward(gz_dot, a, w, need_a_dot, need_parameters, bf16)
    if need_a_dot:
        ga_dot += _conv_backward(gz, a, w_dot, True, False, bf16)[0]
    if need_parameters and a_dot is not None:
        gw_dot += _conv_backward(gz, a_dot, w, False, True, bf16)[1]
    ga = _conv_backward(gz, a, w, need_a, False, bf16)[0]
    if not need_parameters:
        return ga_dot, gw_dot, a.new_empty(0), a.new_empty(0), ga
    ggamma_dot = (gn_dot * xhat + gn * xhat_dot).sum((1, 2, 3))
    return ga_dot, gw_dot, ggamma_dot, gn_dot.sum((1, 2, 3)), ga


def _wide(parameter: Tensor) -> Tensor:
    """[S,C] -> [S,1,1,1,C]."""
    return parameter[:, None, None, None, :]


def _planes(statistic: Tensor) -> Tensor:
    """[S,B,C] -> [S,B,1,1,C]."""
    return statistic[:, :, None, None, :]


def _plane_mean(z: Tensor) -> Tensor:
    return z.mean((2, 3), keepdim=True)


def _affine(xhat: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return xhat * _wide(gamma) + _wide(beta)


def _normalise(z: Tensor) -> tuple[Tensor, Tensor]:
    centred = z - _plane_mean(z)
    rstd = (_plane_mean(centred.square()) + EPS).rsqrt()
    return centred * rstd, rstd.flatten(2)


def _norm_backward(g: Tensor, xhat: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """The cotangent of the convolution's output, before and after the factor rstd."""
    inner = g - _plane_mean(g) - xhat * _plane_mean(g * xhat)
    return inner, _planes(rstd) * inner


def _images_first(z: Tensor) -> Tensor:
    """[S,B,H,W,C] -> the [S*B,C,H,W] view torch's pooling takes (channels last in memory)."""
    return z.flatten(0, 1).permute(0, 3, 1, 2)


def _pool(z: Tensor) -> Tensor:
    pooled = F.avg_pool2d(_images_first(z), 2).permute(0, 2, 3, 1).contiguous()
    return pooled.view(z.shape[0], z.shape[1], *pooled.shape[1:])


def _unpool(gp: Tensor, like: Tensor) -> Tensor:
    g = torch.ops.aten.avg_pool2d_backward(
        _images_first(gp), _images_first(like), [2, 2], [2, 2], [0, 0], False, True, None
    )
    return g.permute(0, 2, 3, 1).reshape(like.shape)


def _rounded(bf16: bool, a: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """What a convolution of ``a`` multiplies, rounded if it is to be."""
    tensors = (a, *others)
    if not bf16:
        return tensors
    if a.dtype != torch.float32:
        raise RuntimeError(f"bf16 rounds float32 tensors, got {a.dtype}")
    if a.shape[-1] < BF16_CHANNELS:
        return tensors
    return tuple(t.to(torch.bfloat16).to(t.dtype) for t in tensors)


def _conv(a: Tensor, w: Tensor, bf16: bool) -> Tensor:
    """3x3 convolution, padding 1, one student after another."""
    a, w = _rounded(bf16, a, w)
    students = [
        F.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)
        for x, k in zip(a, w, strict=True)
    ]
    return (
        torch.stack(students).contiguous() if len(students) > 1 else students[0][None].contiguous()
    )


def _conv_backward(
    gz: Tensor, a: Tensor, w: Tensor, need_a: bool, need_w: bool, bf16: bool
) -> tuple[Tensor, Tensor]:
    if not (need_a or need_w):
        return gz.new_empty(0), gz.new_empty(0)
    a, w, gz = _rounded(bf16, a, w, gz)
    students = [
        torch.ops.aten.convolution_backward(
            g.permute(0, 3, 1, 2),
            x.permute(0, 3, 1, 2),
            k.permute(3, 2, 0, 1).contiguous(),  # one output channel: torch's float64 needs it
            None,
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [need_a, need_w, False],
        )
        for g, x, k in zip(gz, a, w, strict=True)
    ]
    ga = torch.stack([s[0].permute(0, 2, 3, 1) for s in students]) if need_a else gz.new_empty(0)
    gw = torch.stack([s[1].permute(2, 3, 1, 0) for s in students]) if need_w else gz.new_empty(0)
    return ga.contiguous(), gw.contiguous()


# --- which ReLUs are active, with a hook for tests of precision --------------------------------


class _Masks:
    recorded: list[Tensor] | None = None
    replayed: Iterator[Tensor] | None = None


def _active(n: Tensor) -> Tensor:
    if _Masks.replayed is not None:
        return next(_Masks.replayed).to(n.dtype)
    mask = n > 0
    if _Masks.recorded is not None:
        _Masks.recorded.append(mask)
    return mask.to(n.dtype)


@contextmanager
def recorded_masks() -> Iterator[list[Tensor]]:
    """Record every ReLU mask, in the order of the calls: one flipped ReLU outweighs rounding."""
    masks: list[Tensor] = []
    _Masks.recorded = masks
    try:
        yield masks
    finally:
        _Masks.recorded = None


@contextmanager
def replayed_masks(masks: Sequence[Tensor]) -> Iterator[None]:
    """Use recorded masks, in order, in place of the sign of the input."""
    _Masks.replayed = iter(masks)
    try:
        yield
    finally:
        _Masks.replayed = None
