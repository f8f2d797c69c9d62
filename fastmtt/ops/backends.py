"""Which backend serves an op: per call, by device, dtype and what is built.

``cpu`` is the compiled extension, ``reference`` plain torch. Nothing forced: the fastest that can
serve, and a fall-back says so once. ``FASTMTT_BACKEND`` or :func:`use` force one: a forced backend
that has the op but cannot serve the call raises with its reason; an op it lacks altogether is
served by the reference, which ``python -m fastmtt.info`` lists.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.ops import reference

BACKENDS = ("reference", "cpu")
_SERVED = (torch.float32, torch.float64)
logger = logging.getLogger("fastmtt")
_forced: ContextVar[str | None] = ContextVar("fastmtt_backend", default=None)


_libraries: list[torch.library.Library] = []  # what is registered lives as long as its library


@cache
def extension_error() -> str | None:
    """None if the compiled ops are loaded, else why not."""
    try:
        importlib.import_module("fastmtt._C")
    except ImportError as error:
        return (
            f"the extension fastmtt._C cannot be loaded ({error}); "
            "build it: pip install -e . --no-build-isolation"
        )
    _complete_with_reference()
    return None


@cache
def compiled(op: str) -> bool:
    """Whether the extension holds a CPU kernel for ``op``."""
    if extension_error() is not None:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmtt::{op}", "CPU"))


def forced() -> str | None:
    """The backend forced here, by :func:`use` or the environment, if any."""
    name = _forced.get() or os.environ.get("FASTMTT_BACKEND") or None
    if name is not None and name not in BACKENDS:
        raise FastmttError(
            f"backend {name!r} is not known; known are {', '.join(BACKENDS)} "
            "(argument backend= or environment variable FASTMTT_BACKEND)"
        )
    return name


@contextmanager
def use(backend: str | None) -> Iterator[None]:
    """Force a backend within the context; None leaves the choice as it is.

    Autocast is off within: the ops compute in their tensors' own dtype.
    """
    token = _forced.set(backend if backend is not None else _forced.get())
    try:
        forced()
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _forced.reset(token)


def call(op: str, *args: Any, into: Sequence[Tensor] | None = None) -> Any:
    """Run ``op`` on the backend that serves these arguments.

    Args:
        op: its name.
        *args: all its arguments.
        into: tensors to write the results into, contiguous (a block's for each student), which are
            returned in place of fresh ones; one for a result not asked for is left alone. Further
            tensors are room that a compiled op may work in.
    """
    compiled_serves = _compiled_serves(op, args if into is None else (*args, *into))
    if into is None:
        return (_compiled_op(op) if compiled_serves else getattr(reference, op))(*args)
    if not compiled_serves:
        return _write(getattr(reference, op), args, into)
    _compiled_op(op, "into")(*args, *into)
    count = len(_compiled_op(op)._schema.returns)
    return into[0] if count == 1 else tuple(into[:count])


def _compiled_serves(op: str, args: tuple[Any, ...]) -> bool:
    wanted = forced()
    if wanted == "reference":
        return False
    if wanted == "cpu" and extension_error() is not None:
        raise FastmttError(f"backend 'cpu' was asked for, but {extension_error()}")
    if not compiled(op):
        return False
    refusal = _refusal(args)
    if refusal is None:
        return True
    if wanted == "cpu":
        raise FastmttError(f"backend 'cpu' cannot serve {op}: {refusal}")
    _say_once(f"{op}: the compiled kernel cannot serve ({refusal}); plain torch does")
    return False


@cache
def _compiled_op(op: str, overload: str = "default") -> Any:
    return getattr(getattr(torch.ops.fastmtt, op), overload)


def _write(function: Callable[..., Any], args: Sequence[Any], into: Sequence[Tensor]) -> Any:
    """Results of a function that makes its own, copied to where they are wanted."""
    found = function(*args)
    results = found if isinstance(found, tuple) else (found,)
    for result, place in zip(results, into, strict=False):
        if result.shape == (0,):  # not asked for, or nothing to copy
            continue
        part = place if place.dim() < 2 or place.numel() == 0 else place[0]
        fits = (place.shape, place.dtype) == (result.shape, result.dtype) and part.is_contiguous()
        if not fits:
            raise RuntimeError(
                f"{function.__name__}: a result must be a {result.dtype} tensor of shape "
                f"{list(result.shape)}, contiguous for each student, to be written into, got "
                f"{place.dtype} of shape {list(place.shape)} and strides {list(place.stride())}"
            )
        place.copy_(result)
    return tuple(into[: len(results)]) if isinstance(found, tuple) else into[0]


def _refusal(args: tuple[Any, ...]) -> str | None:
    for arg in args:
        if not isinstance(arg, Tensor):
            continue
        if not arg.is_cpu:
            return f"it works on CPU tensors, this one is on {arg.device}"
        dtype = arg.dtype
        if dtype not in _SERVED and dtype.is_floating_point:
            return f"it works in float32 and float64, this tensor is {dtype}"
    return None


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def _complete_with_reference() -> None:
    """Give every declared op the reference where no kernel is compiled, and its shapes as fake."""
    library = torch.library.Library("fastmtt", "IMPL")
    _libraries.append(library)
    for op in reference.__all__:
        plain = getattr(reference, op)
        library.impl(op, plain, "CompositeExplicitAutograd")
        fake = _same_shape if op.startswith("dsa") else plain
        torch.library.register_fake(f"fastmtt::{op}", fake, lib=library)
        if "into" in getattr(torch.ops.fastmtt, op).overloads():
            library.impl(f"{op}.into", _writing(plain), "CompositeExplicitAutograd")
            torch.library.register_fake(f"fastmtt::{op}.into", _nothing, lib=library)


def _writing(function: Callable[..., Any]) -> Callable[..., None]:
    count = len(signature(function).parameters)

    def write(*args: Any) -> None:
        _write(function, args[:count], args[count:])

    return write


def _nothing(*args: Any) -> None:
    return None


def _same_shape(x: Tensor, kind: Tensor, values: Tensor, cutout: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


class Row(NamedTuple):
    """One line of the table ``python -m fastmtt.info`` prints."""

    op: str
    backend: str
    reason: str


def table() -> list[Row]:
    """For every op the backend that serves float32 CPU tensors now, and why."""
    wanted = forced()
    rows = []
    for op in reference.__all__:
        if wanted == "reference":
            rows.append(Row(op, "reference", "forced"))
        elif compiled(op):
            rows.append(Row(op, "cpu", "compiled"))
        else:
            rows.append(Row(op, "reference", extension_error() or "no compiled kernel yet"))
    return rows
