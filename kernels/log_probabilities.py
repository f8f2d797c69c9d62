"""The head forward: log-probabilities and mean losses, or the tangents of both.

Products over pieces of the features first, then the pieces added up in their order, some images a
program; the programs' shares of a loss are added up last. No order depends on other students.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.flat import add_up, dense, types
from fastmtt.kernels.tuning import Config
from torch import Tensor

_PIECE = 128  # features a program multiplies where there is little else to spread
_PROGRAMS = 256  # programs a student that are enough to spread


def log_probabilities(
    factors: Sequence[Tensor],
    b: Tensor,
    logp: Tensor,
    y: Tensor,
    loss: Tensor,
    out: Tensor,
    *,
    tangent: bool,
) -> None:
    """Write log-probabilities [S,B,K] to ``out`` and mean losses [S] to ``loss``.

    Args:
        factors: f, f_dot [S,B,D], w, w_dot [S,K,D]; without a tangent the dots are any like them.
        b: the bias [S,K], or its tangent.
        logp: with a tangent the log-probabilities; else anything like them.
        y: labels.
        loss: see above.
        out: see above; contiguous for each student.
        tangent: whether the results' tangents are wanted in their place.
    """
    factors, b = [dense(t) for t in factors], dense(b)
    (students, batch, features), classes = factors[0].shape, factors[2].shape[1]
    config, rows = products(batch, classes), _rows(batch, classes)
    tiles = triton.cdiv(batch, config.sizes["IMAGES"]) * triton.cdiv(
        classes, config.sizes["CLASSES"]
    )
    count = max(1, min(triton.cdiv(features, _PIECE), _PROGRAMS // tiles))
    pieces = b.new_empty(students, count, batch, classes)
    _products_of_pieces[(tiles, count, students)](
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
    blocks = triton.cdiv(batch, rows.sizes["IMAGES"])
    shares = loss if blocks == 1 else loss.new_empty(students, blocks)
    _log_probabilities[(blocks, students)](
        pieces,
        b,
        logp.contiguous(),
        y.contiguous(),
        shares,
        out,
        count,
        batch,
        classes,
        b.stride(0),
        out.stride(0),
        SOFT=y.is_floating_point(),
        TANGENT=tangent,
        **rows.launch,
    )
    if blocks > 1:
        add_up(shares, loss)


def products(batch: int, classes: int) -> Config:
    """Tiles of the products; ``tl.dot`` asks for at least 16 numbers a side."""
    images, width = (min(32, max(16, triton.next_power_of_2(n))) for n in (batch, classes))
    return Config({"IMAGES": images, "CLASSES": width, "FEATURES": 32}, stages=3)


def _rows(batch: int, classes: int) -> Config:
    """Whole rows of classes; few, so that there are programs for many multiprocessors."""
    width = triton.next_power_of_2(classes)
    height = min(triton.next_power_of_2(batch), max(1, 512 // width))
    return Config({"IMAGES": height, "CLASSES": width}, warps=4)


@triton.jit
def tile(matrix, row, column, rows, columns):
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
        seen, weight = tile(f, image, d, batch, features), tile(w, k, d, classes, features)
        if TANGENT:
            moved = tile(f_dot, image, d, batch, features)
            product = tl.dot(moved, tl.trans(weight), product, input_precision="ieee")
            weight = tile(w_dot, k, d, classes, features)
        product = tl.dot(seen, tl.trans(weight), product, input_precision="ieee")
    pieces += (student * tl.num_programs(1) + piece) * batch * classes
    inside = (image < batch)[:, None] & (k < classes)[None, :]
    tl.store(pieces + image[:, None] * classes + k[None, :], product, inside)


# Specialised on alignment, rows would be laid out and added up by where a student's begin.
@triton.jit(
    do_not_specialize=["b_student", "out_student"],
    do_not_specialize_on_alignment=["pieces", "b", "logp", "y", "loss", "out"],
)
def _log_probabilities(
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
    """Some images' log-probabilities and share of the loss, or the tangents of both."""
    student = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, CLASSES)
    bias = tl.load(b + student * b_student + k, k < classes, other=0.0)
    pieces += student * count * batch * classes
    y += student * batch * (classes if SOFT else 1)
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
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
    losses = tl.sum(tl.where(inside, target * value, 0.0), 1)
    share = student * tl.num_programs(0) + tl.program_id(0)
    tl.store(loss + share, -tl.sum(losses) / batch)


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """The kernels at sizes in use: (name, kernel, types, constants, configuration)."""
    sizes = "batch classes features length f_student f_dot_student w_student w_dot_student"
    for batch, classes in SIZES:
        for kind, flags in (("primal", {"TANGENT": False}), ("tangent", {"TANGENT": True})):
            signature = types("f f_dot w w_dot pieces", sizes)
            name = f"pieces/{batch}x{classes}/{kind}"
            yield name, _products_of_pieces, signature, flags, products(batch, classes)
            for soft in (False, True):
                signature = types(
                    "pieces b logp loss out", "count batch classes b_student out_student"
                )
                signature["y"] = "*fp32" if soft else "*i64"
                name = f"losses/{batch}x{classes}/{'soft' if soft else 'hard'}/{kind}"
                constants = {"SOFT": soft, **flags}
                yield name, _log_probabilities, signature, constants, _rows(batch, classes)


SIZES = ((10, 10), (100, 10), (100, 200), (10, 1000))  # batch and classes of the specimens
