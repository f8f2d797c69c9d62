"""The head: linear classifier with softmax cross-entropy, its cotangents and both's tangents.

Two launches an op serve all students. Forward: products over pieces of the features, then a
student's pieces added up in their order, its log-probabilities and mean loss. Backward: one kernel
for the features' cotangents, one for the parameters', each making the logits' gradient from the
log-probabilities as it goes; soft labels' own cotangent is a third. Products are float32 throughout
and no order of adding up depends on other students. A class index out of range cannot be refused
without a host read: it makes its image's log-probabilities NaN, hence all that follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from fastmtt.kernels.flat import Into, dense, expect, place, types
from fastmtt.kernels.tuning import Config
from torch import Tensor

_PIECE = 256  # features a program multiplies where there is little else to spread
_PROGRAMS = 64  # programs a student that are enough to spread


def linear_xent(
    f: Tensor, w: Tensor, b: Tensor, y: Tensor, *, into: Into = None
) -> tuple[Tensor, Tensor]:
    """f [S,B,D], w [S,K,D], b [S,K], y int64 [S,B] or float [S,B,K]: loss [S], log p [S,B,K]."""
    op = "linear_xent"
    shape = _shape(op, f, w, y)
    expect(op, {"b": (b, shape[::2])}, f)
    loss, logp = place(op, into, 0, shape[:1], f), place(op, into, 1, shape, f)
    _Point(f, f, w, w, logp, logp, y).losses(b, loss, logp, tangent=False)
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
    _Point(f, f_dot, w, w_dot, logp, logp, y).losses(b_dot, loss_dot, logp_dot, tangent=True)
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
    point = _Point(f, f, w, w, logp, logp, y)
    if need_f:
        point.backward(_feature_gradients, "IMAGES", gf, gf, PRIMAL=True, TANGENT=False)
    if need_parameters:
        point.backward(_parameter_gradients, "CLASSES", gw, gb, TANGENT=False)
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
    point = _Point(f, f_dot, w, w_dot, logp, logp_dot, y)
    if need_f or need_f_dot:
        results = gf if need_f else gf_dot, gf_dot if need_f_dot else gf
        point.backward(_feature_gradients, "IMAGES", *results, PRIMAL=need_f, TANGENT=need_f_dot)
    if need_parameters:
        point.backward(_parameter_gradients, "CLASSES", gw_dot, gb_dot, TANGENT=True)
    if _soft(y):
        torch.div(logp_dot.detach(), -f.shape[1], out=gy_dot)
    return places


# --- arguments and launches ---------------------------------------------------------------------


class _Point(NamedTuple):
    """Where the head is evaluated; a tangent that no kernel will read is any tensor like it."""

    f: Tensor
    f_dot: Tensor
    w: Tensor
    w_dot: Tensor
    logp: Tensor
    logp_dot: Tensor
    y: Tensor

    def losses(self, b: Tensor, loss: Tensor, logp: Tensor, tangent: bool) -> None:
        """Log-probabilities and mean losses, or their tangents; ``b`` is the bias or its own."""
        factors = [dense(t) for t in self[:4]]
        (students, batch, features), classes = self.f.shape, self.w.shape[1]
        config = _products(batch, classes)
        tiles = [
            triton.cdiv(n, config.sizes[t]) for n, t in ((batch, "IMAGES"), (classes, "CLASSES"))
        ]
        tile_count = tiles[0] * tiles[1]
        count = max(1, min(triton.cdiv(features, _PIECE), _PROGRAMS // tile_count))
        pieces = b.new_empty(students, count, batch, classes)
        _products_of_pieces[(tile_count, count, students)](
            *factors,
            pieces,
            batch,
            classes,
            features,
            triton.cdiv(features, count),
            *(t.stride(0) for t in factors),
            TANGENT=tangent,
            **config.launch,
        )
        b = dense(b)
        _mean_losses[(students,)](
            pieces,
            b,
            self.logp.contiguous(),
            self.y.contiguous(),
            loss,
            logp,
            count,
            batch,
            classes,
            b.stride(0),
            logp.stride(0),
            SOFT=_soft(self.y),
            TANGENT=tangent,
            **_rows(batch, classes).launch,
        )

    def backward(
        self, kernel: Any, tiles_of: str, first: Tensor, second: Tensor, **flags: bool
    ) -> None:
        """Launch a kernel of cotangents that writes ``first`` and ``second``."""
        factors = [dense(t) for t in self[:4]]
        (students, batch, features), classes = self.f.shape, self.w.shape[1]
        config = _products(batch, classes)
        rows = batch if tiles_of == "IMAGES" else classes
        grid = (
            triton.cdiv(rows, config.sizes[tiles_of]),
            triton.cdiv(features, config.sizes["FEATURES"]),
            students,
        )
        kernel[grid](
            *factors,
            *(t.contiguous() for t in self[4:]),
            first,
            second,
            batch,
            classes,
            features,
            *(t.stride(0) for t in (*factors, first, second)),
            SOFT=_soft(self.y),
            **flags,
            **config.launch,
        )


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


def _products(batch: int, classes: int) -> Config:
    """Tiles of the products; ``tl.dot`` asks for at least 16 numbers a side."""
    images, width = (min(32, max(16, triton.next_power_of_2(n))) for n in (batch, classes))
    return Config({"IMAGES": images, "CLASSES": width, "FEATURES": 32}, stages=3)


def _rows(batch: int, classes: int) -> Config:
    """Whole rows of classes, as many as fill a tile."""
    width = triton.next_power_of_2(classes)
    height = min(triton.next_power_of_2(batch), max(1, 2048 // width))
    return Config({"IMAGES": height, "CLASSES": width}, warps=4)


# --- kernels: one program a tile and student ----------------------------------------------------


@triton.jit
def _tile(matrix, row, column, rows, columns):
    """A tile of a contiguous matrix, zero outside."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(matrix + row[:, None] * columns + column[None, :], inside, other=0.0)


@triton.jit
def _products_of_pieces(
    f,
    f_dot,
    w,
    w_dot,
    pieces,
    batch,
    classes,
    features,
    length,
    f_student,
    f_dot_student,
    w_student,
    w_dot_student,
    TANGENT: tl.constexpr,
    IMAGES: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    class_tiles = tl.cdiv(classes, CLASSES)
    image = tl.program_id(0) // class_tiles * IMAGES + tl.arange(0, IMAGES)
    k = tl.program_id(0) % class_tiles * CLASSES + tl.arange(0, CLASSES)
    piece = tl.program_id(1)
    student = tl.program_id(2).to(tl.int64)
    f += student * f_student
    f_dot += student * f_dot_student
    w += student * w_student
    w_dot += student * w_dot_student
    first, last = piece * length, tl.minimum((piece + 1) * length, features)
    product = tl.zeros([IMAGES, CLASSES], tl.float32)
    for start in range(first, last, FEATURES):
        d = start + tl.arange(0, FEATURES)
        d = tl.where(d < last, d, features)  # nothing of the next piece
        seen, weight = _tile(f, image, d, batch, features), _tile(w, k, d, classes, features)
        if TANGENT:
            moved = _tile(f_dot, image, d, batch, features)
            product = tl.dot(moved, tl.trans(weight), product, input_precision="ieee")
            weight = _tile(w_dot, k, d, classes, features)
        product = tl.dot(seen, tl.trans(weight), product, input_precision="ieee")
    pieces += (student * tl.num_programs(1) + piece) * batch * classes
    inside = (image < batch)[:, None] & (k < classes)[None, :]
    tl.store(pieces + image[:, None] * classes + k[None, :], product, inside)


# Specialised on alignment, rows would be laid out and added up by where a student's begin.
@triton.jit(
    do_not_specialize=["b_student", "out_student"],
    do_not_specialize_on_alignment=["pieces", "b", "logp", "y", "loss", "out"],
)
def _mean_losses(
    pieces,
    b,
    logp,
    y,
    loss,
    out,
    count,
    batch,
    classes,
    b_student,
    out_student,
    SOFT: tl.constexpr,
    TANGENT: tl.constexpr,
    IMAGES: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """One program a student: log-probabilities and the loss, or the tangents of both."""
    student = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, CLASSES)
    bias = tl.load(b + student * b_student + k, k < classes, other=0.0)
    pieces += student * count * batch * classes
    y += student * batch * (classes if SOFT else 1)
    losses = tl.zeros([IMAGES], tl.float32)
    for first in range(0, batch, IMAGES):
        image = first + tl.arange(0, IMAGES)
        at = image[:, None] * classes + k[None, :]
        inside = (image < batch)[:, None] & (k < classes)[None, :]
        value = tl.broadcast_to(bias[None, :], [IMAGES, CLASSES])
        for piece in range(count):
            value += tl.load(pieces + piece * batch * classes + at, inside, other=0.0)
        if TANGENT:
            known = tl.load(logp + student * batch * classes + at, inside, other=float("-inf"))
            value -= tl.sum(tl.exp(known) * value, 1)[:, None]
        else:
            value = tl.where((k < classes)[None, :], value, float("-inf"))
            value -= tl.max(value, 1)[:, None]
            value -= tl.log(tl.sum(tl.exp(value), 1))[:, None]
        if SOFT:
            target = tl.load(y + at, inside, other=0.0)
        else:
            label = tl.load(y + image, image < batch, other=0)
            known_class = (label >= 0) & (label < classes)
            value = tl.where(known_class[:, None], value, float("nan"))
            target = (label[:, None] == k[None, :]).to(tl.float32)
        tl.store(out + student * out_student + at, value, inside)
        losses -= tl.sum(tl.where(inside, target * value, 0.0), 1)
    tl.store(loss + student, tl.sum(losses) / batch)


@triton.jit
def _label_sums(y, image, batch, classes, SOFT: tl.constexpr, CLASSES: tl.constexpr):
    """Each image's labels added up; learned ones need not be of sum one."""
    sums = tl.full(image.shape, 0.0 if SOFT else 1.0, tl.float32)
    if SOFT:
        for first in range(0, classes, CLASSES):
            sums += tl.sum(_tile(y, image, first + tl.arange(0, CLASSES), batch, classes), 1)
    return sums


@triton.jit
def _logit_gradients(
    logp, logp_dot, y, sums, image, k, batch, classes, SOFT: tl.constexpr, TANGENT: tl.constexpr
):
    """The loss's gradient in a tile of logits and, if TANGENT, its tangent; zero outside."""
    inside = (image < batch)[:, None] & (k < classes)[None, :]
    at = image[:, None] * classes + k[None, :]
    share = tl.exp(tl.load(logp + at, inside, other=float("-inf"))) * sums[:, None]
    if SOFT:
        target = tl.load(y + at, inside, other=0.0)
    else:
        label = tl.load(y + image, image < batch, other=-1)
        target = (label[:, None] == k[None, :]).to(tl.float32)
    g = (share - target) / batch
    g_dot = g
    if TANGENT:
        g_dot = share * tl.load(logp_dot + at, inside, other=0.0) / batch
    return g, g_dot


@triton.jit(do_not_specialize_on_alignment=["logp", "logp_dot", "y"])
def _feature_gradients(
    f,
    f_dot,
    w,
    w_dot,
    logp,
    logp_dot,
    y,
    gf,
    gf_dot,
    batch,
    classes,
    features,
    f_student,
    f_dot_student,
    w_student,
    w_dot_student,
    gf_student,
    gf_dot_student,
    SOFT: tl.constexpr,
    PRIMAL: tl.constexpr,
    TANGENT: tl.constexpr,
    IMAGES: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """gf = g w and its tangent."""
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    d = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    student = tl.program_id(2).to(tl.int64)
    logp += student * batch * classes
    logp_dot += student * batch * classes
    y += student * batch * (classes if SOFT else 1)
    sums = _label_sums(y, image, batch, classes, SOFT, CLASSES)
    found = tl.zeros([IMAGES, FEATURES], tl.float32)
    found_dot = tl.zeros([IMAGES, FEATURES], tl.float32)
    for first in range(0, classes, CLASSES):
        k = first + tl.arange(0, CLASSES)
        g, g_dot = _logit_gradients(
            logp, logp_dot, y, sums, image, k, batch, classes, SOFT, TANGENT
        )
        weight = _tile(w + student * w_student, k, d, classes, features)
        if PRIMAL:
            found = tl.dot(g, weight, found, input_precision="ieee")
        if TANGENT:
            moved = _tile(w_dot + student * w_dot_student, k, d, classes, features)
            found_dot = tl.dot(g_dot, weight, found_dot, input_precision="ieee")
            found_dot = tl.dot(g, moved, found_dot, input_precision="ieee")
    inside = (image < batch)[:, None] & (d < features)[None, :]
    at = image[:, None] * features + d[None, :]
    if PRIMAL:
        tl.store(gf + student * gf_student + at, found, inside)
    if TANGENT:
        tl.store(gf_dot + student * gf_dot_student + at, found_dot, inside)


@triton.jit(do_not_specialize_on_alignment=["logp", "logp_dot", "y"])
def _parameter_gradients(
    f,
    f_dot,
    w,
    w_dot,
    logp,
    logp_dot,
    y,
    gw,
    gb,
    batch,
    classes,
    features,
    f_student,
    f_dot_student,
    w_student,
    w_dot_student,
    gw_student,
    gb_student,
    SOFT: tl.constexpr,
    TANGENT: tl.constexpr,
    IMAGES: tl.constexpr,
    CLASSES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """gw = g^T f and gb, the sum of g over the images; or the tangents of both alone."""
    k = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    d = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    student = tl.program_id(2).to(tl.int64)
    logp += student * batch * classes
    logp_dot += student * batch * classes
    y += student * batch * (classes if SOFT else 1)
    found = tl.zeros([CLASSES, FEATURES], tl.float32)
    bias = tl.zeros([CLASSES], tl.float32)
    for first in range(0, batch, IMAGES):
        image = first + tl.arange(0, IMAGES)
        sums = _label_sums(y, image, batch, classes, SOFT, CLASSES)
        g, g_dot = _logit_gradients(
            logp, logp_dot, y, sums, image, k, batch, classes, SOFT, TANGENT
        )
        seen = _tile(f + student * f_student, image, d, batch, features)
        if TANGENT:
            moved = _tile(f_dot + student * f_dot_student, image, d, batch, features)
            found = tl.dot(tl.trans(g), moved, found, input_precision="ieee")
        found = tl.dot(tl.trans(g_dot), seen, found, input_precision="ieee")
        bias += tl.sum(g_dot, 0)
    inside = (k < classes)[:, None] & (d < features)[None, :]
    tl.store(gw + student * gw_student + k[:, None] * features + d[None, :], found, inside)
    if tl.program_id(1) == 0:
        tl.store(gb + student * gb_student + k, bias, k < classes)


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """Every kernel here at sizes in use: (name, kernel, types, constants, configuration)."""
    factors = "f f_dot w w_dot"
    strides = "batch classes features f_student f_dot_student w_student w_dot_student"
    for batch, classes in ((10, 10), (100, 10), (100, 200), (10, 1000)):
        products, rows = _products(batch, classes), _rows(batch, classes)
        for soft in (False, True):
            y = {"y": "*fp32" if soft else "*i64"}
            size = f"{batch}x{classes}/{'soft' if soft else 'hard'}"
            for tangent in (False, True):
                kind, flags = f"{size}/{'tangent' if tangent else 'primal'}", {"TANGENT": tangent}
                if not soft:
                    signature = types(f"{factors} pieces", f"{strides} length")
                    yield f"pieces/{kind}", _products_of_pieces, signature, flags, products
                flags = {"SOFT": soft, "TANGENT": tangent}
                signature = types(
                    "pieces b logp loss out", "count batch classes b_student out_student"
                )
                yield f"losses/{kind}", _mean_losses, signature | y, flags, rows
                given = f"{factors} logp logp_dot"
                signature = types(f"{given} gw gb", f"{strides} gw_student gb_student") | y
                yield f"parameters/{kind}", _parameter_gradients, signature, flags, products
                signature = types(f"{given} gf gf_dot", f"{strides} gf_student gf_dot_student") | y
                for primal in (True, False) if tangent else (True,):
                    name = f"features/{kind}{'' if primal else '/alone'}"
                    yield name, _feature_gradients, signature, {**flags, "PRIMAL": primal}, products
