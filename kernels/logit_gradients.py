"""The head backward: cotangents of features and parameters, or the tangents of these.

Each kernel makes the logits' gradient from the log-probabilities as it goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.flat import dense, types
from fastmtt.kernels.log_probabilities import SIZES, products, tile
from fastmtt.kernels.tuning import Config
from torch import Tensor


class Point:
    """Where the head is evaluated; a tangent that no kernel will read is any tensor like it."""

    def __init__(self, factors: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        """Take f, f_dot [S,B,D], w, w_dot [S,K,D], and logp, logp_dot [S,B,K], y."""
        self._factors = [dense(t) for t in factors]
        self._labels = [t.contiguous() for t in labels]

    def features(self, gf: Tensor, gf_dot: Tensor, *, primal: bool, tangent: bool) -> None:
        """Write the features' cotangent [S,B,D] and its tangent, each if wanted."""
        self._launch(_feature_gradients, "IMAGES", gf, gf_dot, PRIMAL=primal, TANGENT=tangent)

    def parameters(self, gw: Tensor, gb: Tensor, *, tangent: bool) -> None:
        """Write the cotangents of w [S,K,D] and b [S,K], or the tangents of these."""
        self._launch(_parameter_gradients, "CLASSES", gw, gb, TANGENT=tangent)

    def _launch(
        self, kernel: Any, tiles_of: str, first: Tensor, second: Tensor, **flags: bool
    ) -> None:
        f, w, y = self._factors[0], self._factors[2], self._labels[2]
        (students, batch, features), classes = f.shape, w.shape[1]
        config = products(batch, classes)
        rows = batch if tiles_of == "IMAGES" else classes
        grid = (
            triton.cdiv(rows, config.sizes[tiles_of]),
            triton.cdiv(features, config.sizes["FEATURES"]),
            students,
        )
        kernel[grid](
            *self._factors,
            *self._labels,
            first,
            second,
            batch,
            classes,
            features,
            *(t.stride(0) for t in (*self._factors, first, second)),
            SOFT=y.is_floating_point(),
            **flags,
            **config.launch,
        )


@triton.jit
def _label_sums(y, image, batch, classes, SOFT: tl.constexpr, CLASSES: tl.constexpr):
    """Each image's labels added up; learned ones need not be of sum one."""
    sums = tl.full(image.shape, 0.0 if SOFT else 1.0, tl.float32)
    if SOFT:
        for first in range(0, classes, CLASSES):
            sums += tl.sum(tile(y, image, first + tl.arange(0, CLASSES), batch, classes), 1)
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
        weight = tile(w + student * w_student, k, d, classes, features)
        if PRIMAL:
            found = tl.dot(g, weight, found, input_precision="ieee")
        if TANGENT:
            moved = tile(w_dot + student * w_dot_student, k, d, classes, features)
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
        seen = tile(f + student * f_student, image, d, batch, features)
        if TANGENT:
            moved = tile(f_dot + student * f_dot_student, image, d, batch, features)
            found = tl.dot(tl.trans(g), moved, found, input_precision="ieee")
        found = tl.dot(tl.trans(g_dot), seen, found, input_precision="ieee")
        bias += tl.sum(g_dot, 0)
    inside = (k < classes)[:, None] & (d < features)[None, :]
    tl.store(gw + student * gw_student + k[:, None] * features + d[None, :], found, inside)
    if tl.program_id(1) == 0:
        tl.store(gb + student * gb_student + k, bias, k < classes)


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """The kernels at sizes in use: (name, kernel, types, constants, configuration)."""
    given = "f f_dot w w_dot logp logp_dot"
    sizes = "batch classes features f_student f_dot_student w_student w_dot_student"
    for (batch, classes), soft, tangent in product(SIZES, (False, True), (False, True)):
        kind = f"{'soft' if soft else 'hard'}/{'tangent' if tangent else 'primal'}"
        labels, config = {"y": "*fp32" if soft else "*i64"}, products(batch, classes)
        flags = {"SOFT": soft, "TANGENT": tangent}
        signature = types(f"{given} gw gb", f"{sizes} gw_student gb_student") | labels
        yield f"parameters/{batch}x{classes}/{kind}", _parameter_gradients, signature, flags, config
        signature = types(f"{given} gf gf_dot", f"{sizes} gf_student gf_dot_student") | labels
        for primal in (True, False) if tangent else (True,):
            name = f"features/{batch}x{classes}/{kind}{'' if primal else '/alone'}"
            yield name, _feature_gradients, signature, {**flags, "PRIMAL": primal}, config
