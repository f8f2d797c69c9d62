"""Flat vectors [S,P]: updates, inner products and distances, and GSAM's two formulas.

Rows may lie apart and start anywhere, but each is contiguous. Sums are added up in chunks of fixed
length, then over the chunks in their order: the same bits on every run and in any company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from fastmtt.kernels.tuning import Config
from torch import Tensor

Into = Sequence[Tensor] | None

_ELEMENTS = Config({"CHUNK": 1024})
_SUMS = Config({"CHUNK": 4096})
_TOTAL = Config({"BLOCK": 256})
_WITH_TOTALS = Config({"CHUNK": 1024, "BLOCK": 256})


def sgd_update(theta: Tensor, g: Tensor, lr: Tensor, *, into: Into = None) -> Tensor:
    """theta - lr * g; the rate, a scalar or [S], must not lie in the result."""
    expect("sgd_update", {"g": (g, theta.shape)}, theta)
    result = place("sgd_update", into, 0, theta.shape, theta)
    rates, theta, g = rates_of("sgd_update", lr, theta), dense(theta), dense(g)
    if result.numel() > 0:
        _sgd_update[_chunks(theta, _ELEMENTS)](
            theta,
            g,
            rates,
            result,
            theta.shape[1],
            theta.stride(0),
            g.stride(0),
            rates.stride(0),
            result.stride(0),
            **_ELEMENTS.launch,
        )
    return result


def dot(a: Tensor, b: Tensor, *, into: Into = None) -> Tensor:
    """Row-wise inner product [S]."""
    expect("dot", {"b": (b, a.shape)}, a)
    return _total("dot", a, b, None, into)


def sqdist(theta: Tensor, target: Tensor, keep: Tensor | None, *, into: Into = None) -> Tensor:
    """Row-wise squared distance [S] over the parameters kept; the others are not looked at."""
    expect("sqdist", {"target": (target, theta.shape)}, theta)
    if keep is not None and (
        keep.dtype != torch.bool or tuple(keep.shape) not in (theta.shape, theta.shape[1:])
    ):
        raise RuntimeError(
            f"sqdist: keep must be bool of shape [P] or [S, P] for theta {list(theta.shape)}, got "
            f"{keep.dtype} of shape {list(keep.shape)}"
        )
    return _total("sqdist", theta, target, keep, into)


def gsam_perturb(
    theta: Tensor, g: Tensor, rho: float, adaptive: bool, *, into: Into = None
) -> Tensor:
    """theta + rho * scale^2 * g / |scale * g|, with scale = |theta| if adaptive, else 1."""
    expect("gsam_perturb", {"g": (g, theta.shape)}, theta)
    result = place("gsam_perturb", into, 0, theta.shape, theta)
    theta, g = dense(theta), dense(g)
    if result.numel() > 0:
        sums = _partials("adaptive" if adaptive else "square", g, theta, None)
        _gsam_perturb[_chunks(theta, _WITH_TOTALS)](
            theta,
            g,
            sums,
            result,
            rho,
            theta.shape[1],
            sums.shape[2],
            theta.stride(0),
            g.stride(0),
            result.stride(0),
            ADAPTIVE=adaptive,
            **_WITH_TOTALS.launch,
        )
    return result


def gsam_combine(g: Tensor, g_perturbed: Tensor, alpha: float, *, into: Into = None) -> Tensor:
    """g_perturbed less alpha times g's part orthogonal to it."""
    expect("gsam_combine", {"g_perturbed": (g_perturbed, g.shape)}, g)
    result = place("gsam_combine", into, 0, g.shape, g)
    g, g_perturbed = dense(g), dense(g_perturbed)
    if result.numel() > 0:
        sums = _partials("angle", g, g_perturbed, None)
        _gsam_combine[_chunks(g, _WITH_TOTALS)](
            g,
            g_perturbed,
            sums,
            result,
            alpha,
            g.shape[1],
            sums.shape[2],
            g.stride(0),
            g_perturbed.stride(0),
            result.stride(0),
            **_WITH_TOTALS.launch,
        )
    return result


# --- what every op here and beside needs of its arguments ---------------------------------------


def place(op: str, into: Into, index: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """The ``index``-th of the tensors given to write into, or a fresh one.

    Raises:
        RuntimeError: its shape or dtype is another, or a student's part of it is not contiguous.
    """
    if into is None:
        return like.new_empty(tuple(shape))
    given = into[index]
    part = given if given.dim() < 2 or given.numel() == 0 else given[0]
    if (given.shape, given.dtype) != (torch.Size(shape), like.dtype) or not part.is_contiguous():
        raise RuntimeError(
            f"{op}: a result must be a {like.dtype} tensor of shape {list(shape)}, contiguous for "
            f"each student, to be written into, got {given.dtype} of shape {list(given.shape)} and "
            f"strides {list(given.stride())}"
        )
    return given


def expect(op: str, wanted: dict[str, tuple[Tensor, Sequence[int]]], like: Tensor) -> None:
    """RuntimeError where a tensor has not the shape wanted, or not the dtype of ``like``."""
    for name, (tensor, shape) in wanted.items():
        if (tensor.shape, tensor.dtype) != (torch.Size(shape), like.dtype):
            raise RuntimeError(
                f"{op}: {name} must be {like.dtype} of shape {list(shape)}, got {tensor.dtype} of "
                f"shape {list(tensor.shape)}"
            )


def rates_of(op: str, lr: Tensor, theta: Tensor) -> Tensor:
    """The rate of each student [S], from a scalar or [S]."""
    if lr.shape not in ((), theta.shape[:1]) or lr.dtype != theta.dtype:
        raise RuntimeError(
            f"{op}: lr must be {theta.dtype} of shape [] or [S] = [{len(theta)}], got {lr.dtype} "
            f"of shape {list(lr.shape)}"
        )
    return lr.expand(len(theta))


def dense(x: Tensor) -> Tensor:
    """``x`` itself if each student's part is contiguous, as kernels want it, else a copy."""
    return x if len(x) == 0 or x[0].is_contiguous() else x.contiguous()


def _chunks(rows: Tensor, config: Config) -> tuple[int, int]:
    return triton.cdiv(rows.shape[1], config.sizes["CHUNK"]), len(rows)


def _partials(of: str, a: Tensor, b: Tensor, keep: Tensor | None) -> Tensor:
    """Sums over each chunk [S, one or three, chunks]."""
    a, b = dense(a), dense(b)
    mask = None if keep is None else dense(keep.expand(a.shape))
    chunks, students = _chunks(a, _SUMS)
    sums = a.new_empty(students, 3 if of == "angle" else 1, chunks)
    if sums.numel() > 0:
        _partial_sums[chunks, students](
            a,
            b,
            a if mask is None else mask,
            sums,
            a.shape[1],
            chunks,
            a.stride(0),
            b.stride(0),
            0 if mask is None else mask.stride(0),
            OF=of,
            MASKED=mask is not None,
            **_SUMS.launch,
        )
    return sums


def _total(op: str, a: Tensor, b: Tensor, keep: Tensor | None, into: Into) -> Tensor:
    result = place(op, into, 0, a.shape[:1], a)
    sums = _partials(op, a, b, keep)
    if result.numel() > 0:
        add_up(sums, result)
    return result


def add_up(sums: Tensor, result: Tensor) -> None:
    """Write the sum of each of S rows, contiguous one after another, to ``result`` [S]."""
    _add_up[(len(result),)](sums, result, sums.shape[-1], **_TOTAL.launch)


@triton.jit
def _sgd_update(
    theta, g, rates, result, length, theta_row, g_row, rates_row, result_row, CHUNK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = column < length
    start = tl.load(theta + row * theta_row + column, inside)
    step = tl.load(rates + row * rates_row) * tl.load(g + row * g_row + column, inside)
    tl.store(result + row * result_row + column, start - step, inside)


# Specialised on alignment, it would lay out and add up a row by where the row begins.
@triton.jit(
    do_not_specialize=["a_row", "b_row", "keep_row"],
    do_not_specialize_on_alignment=["a", "b", "keep"],
)
def _partial_sums(
    a,
    b,
    keep,
    sums,
    length,
    chunks,
    a_row,
    b_row,
    keep_row,
    OF: tl.constexpr,
    MASKED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    chunk = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    wanted = column < length
    if MASKED:
        wanted = tl.load(keep + row * keep_row + column, wanted, other=0) != 0
    x = tl.load(a + row * a_row + column, wanted, other=0.0)
    if OF == "square":
        terms = x * x
    else:
        y = tl.load(b + row * b_row + column, wanted, other=0.0)
        if OF == "sqdist":
            terms = (x - y) * (x - y)
        elif OF == "adaptive":
            terms = (x * y) * (x * y)
        else:
            terms = x * y
    if OF == "angle":
        first = sums + row * 3 * chunks + chunk
        tl.store(first, tl.sum(terms))
        tl.store(first + chunks, tl.sum(x * x))
        tl.store(first + 2 * chunks, tl.sum(y * y))
    else:
        tl.store(sums + row * chunks + chunk, tl.sum(terms))


@triton.jit
def _sum_of(numbers, count, BLOCK: tl.constexpr):
    lanes = tl.zeros([BLOCK], tl.float32)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        lanes += tl.load(numbers + at, at < count, other=0.0)
    return tl.sum(lanes)


@triton.jit
def _add_up(sums, result, chunks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tl.store(result + row, _sum_of(sums + row * chunks, chunks, BLOCK))


@triton.jit
def _gsam_perturb(
    theta,
    g,
    sums,
    result,
    rho,
    length,
    chunks,
    theta_row,
    g_row,
    result_row,
    ADAPTIVE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = column < length
    norm = tl.sqrt(_sum_of(sums + row * chunks, chunks, BLOCK))
    start = tl.load(theta + row * theta_row + column, inside)
    slope = tl.load(g + row * g_row + column, inside)
    if ADAPTIVE:
        slope = start * start * slope
    tl.store(result + row * result_row + column, start + rho * slope / (norm + 1e-12), inside)


@triton.jit
def _gsam_combine(
    g,
    g_perturbed,
    sums,
    result,
    alpha,
    length,
    chunks,
    g_row,
    perturbed_row,
    result_row,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = column < length
    first = sums + row * 3 * chunks
    inner = _sum_of(first, chunks, BLOCK)
    norm = tl.sqrt(_sum_of(first + chunks, chunks, BLOCK))
    norm_perturbed = tl.sqrt(_sum_of(first + 2 * chunks, chunks, BLOCK))
    along = inner / (norm_perturbed * norm + 1e-12) * norm / (norm_perturbed + 1e-12)
    slope = tl.load(g + row * g_row + column, inside)
    there = tl.load(g_perturbed + row * perturbed_row + column, inside)
    combined = there - alpha * (slope - along * there)
    tl.store(result + row * result_row + column, combined, inside)


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """Every kernel here in every form: (name, kernel, types, constants, configuration)."""
    rows = "theta_row g_row result_row"
    yield (
        "sgd_update",
        _sgd_update,
        types("theta g rates result", f"length {rows} rates_row"),
        {},
        _ELEMENTS,
    )
    for of in ("dot", "sqdist", "square", "adaptive", "angle"):
        for masked in (False, True) if of == "sqdist" else (False,):
            signature = types("a b keep sums", "length chunks a_row b_row keep_row")
            if masked:
                signature["keep"] = "*i1"
            name = f"sums/{of}/masked" if masked else f"sums/{of}"
            yield name, _partial_sums, signature, {"OF": of, "MASKED": masked}, _SUMS
    yield "add_up", _add_up, types("sums result", "chunks"), {}, _TOTAL
    for adaptive in (False, True):
        signature = types("theta g sums result", f"length chunks {rows}") | {"rho": "fp32"}
        name = "gsam_perturb/adaptive" if adaptive else "gsam_perturb"
        yield name, _gsam_perturb, signature, {"ADAPTIVE": adaptive}, _WITH_TOTALS
    signature = types("g g_perturbed sums result", "length chunks g_row perturbed_row result_row")
    yield "gsam_combine", _gsam_combine, signature | {"alpha": "fp32"}, {}, _WITH_TOTALS


def types(vectors: str, sizes: str) -> dict[str, str]:
    """A signature of float32 tensors and of whole numbers by parameter name."""
    return dict.fromkeys(vectors.split(), "*fp32") | dict.fromkeys(sizes.split(), "i32")
