"""The blocks' ops at the standard ConvNet's layers, each judged against float64, then timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu.device import DEVICE, SMOKE, relative_rms, seconds_each
from bench.gpu.results import Row
from fastmtt import ops
from fastmtt.ops import backends

WIDTH = 8 if SMOKE else 128
LAYERS = {"32x32x3": (32, 3), "16x16": (16, WIDTH), "8x8": (8, WIDTH)}
# (students, images of each)
SIZES = [(1, 2), (2, 1)] if SMOKE else [(1, 100), (1, 500), (8, 10)]
SECONDS = 0.01 if SMOKE else 0.04
COLD = 2**20 if SMOKE else 2**27  # bytes of inputs to go through, more than a cache holds
BACKENDS = ("reference", "triton", "cuda")
# A kernel may err twice as much as plain torch in the same precision, and by float32's rounding.
FACTOR, ROUNDING = 2.0, 2e-6
SANE = 0.05  # of plain torch's own error; bfloat16 comes to 0.005


class Call(NamedTuple):
    """An op with its arguments, and how many convolutions' work it is: those ops take ``bf16``."""

    op: str
    arguments: tuple[Any, ...]
    convolutions: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The same with other tensors."""
        new = (change(a) if isinstance(a, Tensor) else a for a in self.arguments)
        return self._replace(arguments=tuple(new))

    def run(self, backend: str, precision: str) -> tuple[Tensor, ...]:
        """Its results."""
        rounding = (precision == "bf16",) if self.convolutions else ()
        with ops.use(backend, precision):
            found = getattr(ops, self.op)(*self.arguments, *rounding)
        return (found,) if isinstance(found, Tensor) else found

    @property
    def tensors(self) -> list[Tensor]:
        """Those among the arguments."""
        return [a for a in self.arguments if isinstance(a, Tensor)]


def calls(layer: str, students: int, images: int) -> dict[str, Call]:
    """The ops of one layer by name, as matching calls them; float64 inputs that fit together."""
    side, channels = LAYERS[layer]
    first = channels == 3
    make = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=make, device=DEVICE, dtype=torch.float64)

    a, a_dot = (draw(students, images, side, side, channels) for _ in range(2))
    w, w_dot = (draw(students, 3, 3, channels, WIDTH) / (9 * channels) ** 0.5 for _ in range(2))
    gamma, gamma_dot, beta, beta_dot = (draw(students, WIDTH) for _ in range(4))
    gp, gp_dot = (draw(students, images, side // 2, side // 2, WIDTH) for _ in range(2))
    weights = (w, w_dot, gamma, gamma_dot, beta)
    moving = None if first else a_dot
    with ops.use("reference"):
        _, xhat, rstd = ops.conv_block(a, w, gamma, beta)
        tangents = ops.conv_block_jvp(a, moving, *weights, beta_dot, xhat, rstd)
    xhat_dot, rstd_dot = tangents[2:4]
    backward = (gp, a, w, gamma, beta, xhat, rstd)
    twice = (gp, gp_dot, a, moving, *weights, xhat, rstd, xhat_dot, rstd_dot)
    count = 1 if first else 2
    found = {
        "forward": Call("conv_block", (a, w, gamma, beta), 1),
        "backward, parameters": Call("conv_block_backward", (*backward, (False, True)), 1),
        "jvp": Call("conv_block_jvp", (a, moving, *weights, beta_dot, None, None), 1 + count),
        "backward jvp, parameters": Call(
            "conv_block_backward_jvp", (*twice, (False, True, False)), count
        ),
        "backward jvp": Call("conv_block_backward_jvp", (*twice, (True, True, False)), count + 2),
    }
    if not first:
        found["backward"] = Call("conv_block_backward", (*backward, (True, True)), 2)
        found["jvp, x̂ given"] = Call(
            "conv_block_jvp", (a, moving, *weights, beta_dot, xhat, rstd), 2
        )
        found["backward jvp, ga too"] = Call(
            "conv_block_backward_jvp", (*twice, (True, True, True)), 5
        )
    return found


def measure(layers: list[str], precisions: list[str], peaks: dict[str, float]) -> Iterator[Row]:
    """A row for each op, size, precision and backend.

    Args:
        layers: keys of ``LAYERS``.
        precisions: what convolutions multiply.
        peaks: FLOP/s by precision and "copy" in bytes a second.
    """
    for layer in layers:
        side, channels = LAYERS[layer]
        for students, images in SIZES:
            convolution = 2 * 9 * channels * WIDTH * side * side * students * images
            for name, exact in calls(layer, students, images).items():
                with ops.use("reference"):
                    truth = getattr(ops, exact.op)(*exact.arguments)
                call = exact.map(lambda t: t.float())
                for precision in precisions:
                    yield from contest(
                        {"layer": layer, "S": students, "images": images, "op": name},
                        call,
                        truth,
                        precision,
                        convolution * call.convolutions,
                        peaks,
                    )


def contest(
    row: Row,
    call: Call,
    truth: tuple[Tensor, ...],
    precision: str,
    flop: int,
    peaks: dict[str, float],
) -> Iterator[Row]:
    """A row by each backend, judged against the truth, then timed; 0 FLOP means bytes alone."""
    torch_error, baseline = 0.0, None
    for backend in BACKENDS:
        line = {**row, "precision": precision, "backend": backend}
        if reason := backends.missing(backend, call.op):
            yield {**line, "failed": reason}
            continue
        try:
            found = call.run(backend, precision)
            error = max(
                relative_rms(f, t) for f, t in zip(found, truth, strict=True) if t.numel() > 0
            )
            if backend == "reference":
                torch_error, allowed = error, SANE
            else:
                allowed = FACTOR * torch_error + ROUNDING
            line |= {"error": error, "torch_error": torch_error}
            if not error <= allowed:
                yield {**line, "failed": f"disagrees with float64: {error:.2g} > {allowed:.2g}"}
                continue
            moved = sum(t.nbytes for t in (*call.tensors, *found))
            seconds, how = _time(call, backend, precision, moved)
        except RuntimeError as error_raised:  # out of memory, or of a kernel's resources
            yield {**line, "failed": str(error_raised).splitlines()[0][:200]}
            continue
        baseline = baseline or seconds
        work = {
            "tflops": flop / seconds / 1e12,
            "of_peak": flop / seconds / peaks[precision],
        }
        yield {
            **line,
            "us": seconds * 1e6,
            **(work if flop else {}),
            "gb_a_s": moved / seconds / 1e9,
            "of_copy": moved / seconds / peaks["copy"],
            "faster_than_reference": baseline / seconds,
            "timed": how,
        }


def _time(call: Call, backend: str, precision: str, moved: int) -> tuple[float, str]:
    """Seconds of the op on inputs that are not in the cache."""
    inputs = [call.map(torch.clone) for _ in range(min(1 + COLD // moved, 16))]
    runs = [partial(each.run, backend, precision) for each in inputs]
    for run in runs:
        run()
    return seconds_each(list(islice(cycle(runs), max(len(runs), 4))), SECONDS)
