"""The head: linear classifier with softmax cross-entropy, its cotangents and both's tangents.

Two or three launches an op serve all students. Products are float32 throughout. A class index out
of range cannot be refused without a host read: it makes its image's log-probabilities NaN, hence
all that follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastmtt.kernels.flat import Into, expect, place
from fastmtt.kernels.log_probabilities import log_probabilities
from fastmtt.kernels.logit_gradients import Point
from torch import Tensor


def linear_xent(
    f: Tensor, w: Tensor, b: Tensor, y: Tensor, *, into: Into = None
) -> tuple[Tensor, Tensor]:
    """f [S,B,D], w [S,K,D], b [S,K], y int64 [S,B] or float [S,B,K]: loss [S], log p [S,B,K]."""
    op = "linear_xent"
    shape = _shape(op, f, w, y)
    expect(op, {"b": (b, shape[::2])}, f)
    loss, logp = place(op, into, 0, shape[:1], f), place(op, into, 1, shape, f)
    log_probabilities((f, f, w, w), b, logp, y, loss, logp, tangent=False)
    return loss, logp


def linear_xent_jvp(
    f: Tensor,
    f_dot: Tensor,
    w: Tensor,
    w_dot: Tensor,
    b_dot: Tensor,
    logp: Tensor,
    y: Tensor,
    *,
    into: Into = None,
) -> tuple[Tensor, Tensor]:
    """Tangents of the loss [S] and of the log-probabilities [S,B,K]."""
    op = "linear_xent_jvp"
    shape = _shape(op, f, w, y)
    wanted = {"f_dot": (f_dot, f.shape), "w_dot": (w_dot, w.shape), "b_dot": (b_dot, shape[::2])}
    expect(op, {**wanted, "logp": (logp, shape)}, f)
    loss_dot, logp_dot = place(op, into, 0, shape[:1], f), place(op, into, 1, shape, f)
    log_probabilities((f, f_dot, w, w_dot), b_dot, logp, y, loss_dot, logp_dot, tangent=True)
    return loss_dot, logp_dot


def linear_xent_backward(
    f: Tensor, w: Tensor, logp: Tensor, y: Tensor, needs: Sequence[bool], *, into: Into = None
) -> tuple[Tensor, ...]:
    """Cotangents (f, w, b, y) of each student's loss; ``needs`` = (f, parameters)."""
    op = "linear_xent_backward"
    shape = _shape(op, f, w, y)
    expect(op, {"logp": (logp, shape)}, f)
    need_f, need_parameters = needs
    wanted = (need_f, f), (need_parameters, w), (need_parameters, w[..., 0]), (_soft(y), logp)
    gf, gw, gb, gy = places = _places(op, into, f, wanted)
    point = Point((f, f, w, w), (logp, logp, y))
    if need_f:
        point.features(gf, gf, primal=True, tangent=False)
    if need_parameters:
        point.parameters(gw, gb, tangent=False)
    if _soft(y):
        torch.div(logp.detach(), -f.shape[1], out=gy)
    return places


def linear_xent_backward_jvp(
    f: Tensor,
    f_dot: Tensor,
    w: Tensor,
    w_dot: Tensor,
    logp: Tensor,
    logp_dot: Tensor,
    y: Tensor,
    needs: Sequence[bool],
    *,
    into: Into = None,
) -> tuple[Tensor, ...]:
    """(gf_dot, gw_dot, gb_dot, gy_dot, gf); ``needs`` = (gf_dot, parameters, gf)."""
    op = "linear_xent_backward_jvp"
    shape = _shape(op, f, w, y)
    given = {"f_dot": (f_dot, f.shape), "w_dot": (w_dot, w.shape)}
    expect(op, {**given, "logp": (logp, shape), "logp_dot": (logp_dot, shape)}, f)
    need_f_dot, need_parameters, need_f = needs
    parameters = (need_parameters, w), (need_parameters, w[..., 0])
    wanted = (need_f_dot, f), *parameters, (_soft(y), logp), (need_f, f)
    gf_dot, gw_dot, gb_dot, gy_dot, gf = places = _places(op, into, f, wanted)
    point = Point((f, f_dot, w, w_dot), (logp, logp_dot, y))
    if need_f or need_f_dot:
        results = gf if need_f else gf_dot, gf_dot if need_f_dot else gf
        point.features(*results, primal=need_f, tangent=need_f_dot)
    if need_parameters:
        point.parameters(gw_dot, gb_dot, tangent=True)
    if _soft(y):
        torch.div(logp_dot.detach(), -f.shape[1], out=gy_dot)
    return places


def _soft(y: Tensor) -> bool:
    return y.is_floating_point()


def _shape(op: str, f: Tensor, w: Tensor, y: Tensor) -> tuple[int, int, int]:
    """(S, B, K), or RuntimeError where features, weights and labels do not go together."""
    if f.dim() != 3 or w.dim() != 3 or 0 in (*f.shape, *w.shape):
        raise RuntimeError(
            f"{op}: f and w must be [S,B,D] and [S,K,D] with a student, an image, a feature and a "
            f"class at least, got {list(f.shape)} and {list(w.shape)}"
        )
    students, batch, features = f.shape
    classes = w.shape[1]
    expect(op, {"w": (w, (students, classes, features))}, f)
    if _soft(y):
        expect(op, {"y": (y, (students, batch, classes))}, f)
    elif y.dtype != torch.int64 or y.shape != f.shape[:2]:
        raise RuntimeError(
            f"{op}: y must be int64 of shape {[students, batch]} or probabilities of shape "
            f"{[students, batch, classes]}, got {y.dtype} of shape {list(y.shape)}"
        )
    return students, batch, classes


def _places(
    op: str, into: Into, like: Tensor, wanted: Sequence[tuple[bool, Tensor]]
) -> tuple[Tensor, ...]:
    """Where each result goes (is it wanted, what has its shape); the others as given, or empty."""
    return tuple(
        place(op, into, i, shaped.shape, like)
        if is_wanted
        else (like.new_empty(0) if into is None else into[i])
        for i, (is_wanted, shaped) in enumerate(wanted)
    )
