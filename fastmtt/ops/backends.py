"""Which backend serves an op: per call, by device, dtype and what is built.

``cpu`` and ``cuda`` are in the compiled extension, ``triton`` is Triton's kernels for GPUs,
``reference`` plain torch. Nothing forced: the first of the device that can serve, Triton before
CUDA, and a fall-back to plain torch says so once. ``FASTMTT_BACKEND`` or
:func:`use` force one: a forced backend that has the op but cannot serve the call raises with its
reason; an op it lacks altogether is served by the reference, as ``python -m fastmtt.info`` lists.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.ops import reference

BACKENDS = ("reference", "cpu", "triton", "cuda")
_BOTH = (torch.float32, torch.float64)
_SERVED = {"cpu": _BOTH, "triton": (torch.float32,), "cuda": _BOTH}
_KERNELS = {"cpu": "compiled", "triton": "Triton", "cuda": "CUDA"}
_ON_GPU = ("triton", "cuda")  # in the order in which they are asked
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
def compiled(op: str, device: str = "CPU") -> bool:
    """Whether the extension holds a kernel for ``op`` on a device, "CPU" or "CUDA"."""
    if extension_error() is not None:
        return False
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmtt::{op}", device))


@cache
def cuda_error() -> str | None:
    """None if the extension's CUDA kernels can run, else why not."""
    if (error := extension_error()) is not None:
        return error
    if not any(compiled(op, "CUDA") for op in reference.__all__):
        return "the extension was built without CUDA kernels: see python -m fastmtt.info"
    return None if torch.cuda.is_available() else "torch finds no GPU"


@cache
def hopper() -> bool:
    """Whether the extension holds the convolutions for Hopper GPUs alone, ``fastmtt_hopper``."""
    return extension_error() is None and hasattr(torch.ops.fastmtt_hopper, "convolution")


@cache
def triton_error() -> str | None:
    """None if the Triton kernels can run, else why not."""
    try:
        kernels = importlib.import_module("fastmtt.kernels")
    except ImportError as error:
        return f"Triton's kernels cannot be loaded ({error}); pip install triton"
    if kernels.interpreting or torch.cuda.is_available():
        return None
    return "torch finds no GPU"


def missing(backend: str, op: str) -> str | None:
    """None if ``backend`` holds a kernel for ``op`` that can run here, else why not."""
    if backend == "reference":
        return None
    if (error := _error(backend)) is not None:
        return error
    has = hasattr(_kernels(), op) if backend == "triton" else compiled(op, backend.upper())
    return None if has else f"no {_KERNELS[backend]} kernel"


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
def use(backend: str | None, precision: str | None = None) -> Iterator[None]:
    """Force a backend within the context; None leaves the choice as it is.

    Autocast is off within: the ops compute in their tensors' own dtype. Whether a GPU multiplies
    float32 as tf32 is what torch's switch for convolutions says, unless ``precision`` is "fp32" or
    "tf32".
    """
    token = _forced.set(backend if backend is not None else _forced.get())
    switch = torch.backends.cudnn.allow_tf32
    try:
        forced()
        if precision in ("fp32", "tf32"):
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = switch
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
    backend = _serving(op, args if into is None else (*args, *into))
    if backend == "triton":
        with on_device(next(arg for arg in args if isinstance(arg, Tensor))):
            return getattr(_kernels(), op)(*args, into=into)
    if backend == "reference":
        function = getattr(reference, op)
        return function(*args) if into is None else _write(function, args, into)
    if into is None:
        return _compiled_op(op)(*args)
    _compiled_op(op, "into")(*args, *into)
    count = len(_compiled_op(op)._schema.returns)
    return into[0] if count == 1 else tuple(into[:count])


def without_outputs(channels: int, like: Tensor) -> bool:
    """Whether a block of inputs like this one, of so many channels, needs no normalised outputs.

    The CPU's kernels compute them anew from patches of few channels, sooner than they could be
    read. ``xhat`` and ``xhat_dot`` may then be empty tensors, as results and as arguments.
    """
    return channels * like.element_size() < 64 and _serving("conv_block", (like,)) == "cpu"


def on_device(like: Tensor) -> AbstractContextManager[object]:
    """Within, a GPU's tensor is on the current device: Triton launches and graphs record there."""
    return torch.cuda.device(like.device) if like.is_cuda else nullcontext()


def recording_stream() -> torch.cuda.Stream:
    """On which the current GPU's graphs are recorded: one, as cuBLAS keeps room for each stream."""
    return _stream_of(torch.cuda.current_device())


@cache
def _stream_of(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _serving(op: str, args: tuple[Any, ...]) -> str:
    """The backend for a call: the forced one, or the first of the tensors' device that can."""
    wanted = forced()
    if wanted == "reference":
        return wanted
    if wanted is not None and (error := _error(wanted)) is not None:
        raise FastmttError(f"backend {wanted!r} was asked for, but {error}")
    on_gpu = any(isinstance(arg, Tensor) and arg.is_cuda for arg in args)
    reasons = []
    for backend in [wanted] if wanted is not None else _ON_GPU if on_gpu else ["cpu"]:
        if (lack := missing(backend, op)) is not None:
            if on_gpu:
                reasons.append(lack)
        elif (refusal := _refusal(backend, args)) is None:
            return backend
        elif wanted is not None:
            raise FastmttError(f"backend {wanted!r} cannot serve {op}: {refusal}")
        else:
            reasons.append(f"the {_KERNELS[backend]} kernel cannot serve ({refusal})")
    if reasons:
        _say_once(f"{op}: {'; '.join(reasons)}; plain torch does")
    return "reference"


def _error(backend: str) -> str | None:
    """None if a backend of kernels can run here, else why not."""
    return {"cpu": extension_error, "triton": triton_error, "cuda": cuda_error}[backend]()


def _kernels() -> Any:
    return importlib.import_module("fastmtt.kernels")


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


def _refusal(backend: str, args: tuple[Any, ...]) -> str | None:
    served = _SERVED[backend]
    for arg in args:
        if not isinstance(arg, Tensor):
            continue
        if backend == "cpu" and not arg.is_cpu:
            return f"it works on CPU tensors, this one is on {arg.device}"
        served_here = backend == "triton" and arg.is_cpu and _kernels().interpreting
        if backend in _ON_GPU and not (arg.is_cuda or served_here):
            return f"it works on a GPU's tensors, this one is on {arg.device}"
        if arg.is_floating_point() and arg.dtype not in served:
            names = " and ".join(str(dtype).removeprefix("torch.") for dtype in served)
            return f"it works in {names}, this tensor is {arg.dtype}"
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
    """For every op the backend that serves float32 tensors of the best device here, and why."""
    wanted = forced()
    if wanted == "reference":
        return [Row(op, "reference", "forced") for op in reference.__all__]
    here = _ON_GPU if torch.cuda.is_available() else ("cpu",)
    return [_row(op, here if wanted is None else (wanted,)) for op in reference.__all__]


def _row(op: str, candidates: Sequence[str]) -> Row:
    reasons = []
    for backend in candidates:
        if (reason := missing(backend, op)) is None:
            return Row(op, backend, _KERNELS[backend])
        reasons.append(reason)
    return Row(op, "reference", "; ".join(reasons))
