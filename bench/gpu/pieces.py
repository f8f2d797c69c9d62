"""Single kernels against cuDNN's: the convolution, its two gradients and its tangents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu import operations
from bench.gpu.device import DEVICE, ON_GPU, relative_rms, seconds_each
from bench.gpu.operations import FACTOR, LAYERS, ROUNDING, SECONDS, SIZES, WIDTH
from bench.gpu.results import Row
from fastmtt.ops import backends

FORWARD, TRANSPOSED, WEIGHTS = "convolution", "input gradient", "weight gradient"
Pairs = Sequence[tuple[Tensor, Tensor]]  # what is multiplied; the products of several are summed
Run = Callable[[], Tensor]


def measure_with_ops(
    layers: list[str], precisions: list[str], peaks: dict[str, float]
) -> Iterator[Row]:
    """The ops of the blocks and single kernels, in one process."""
    yield from operations.measure(layers, precisions, peaks)
    yield from measure(layers, precisions, peaks)


def measure(layers: list[str], precisions: list[str], peaks: dict[str, float]) -> Iterator[Row]:
    """Rows by cuDNN and by ours, of one student; arguments as :func:`.operations.measure`."""
    if reason := backends.missing("triton", "conv_block"):
        yield {"table": "pieces", "failed": reason}
        return
    for layer in layers:
        side, channels = LAYERS[layer]
        for images in [images for students, images in SIZES if students == 1]:
            for precision in precisions:
                for name, kind, pairs in _cases(layer, images, precision):
                    flop = 2 * 9 * channels * WIDTH * side * side * images * len(pairs)
                    row = {"table": "pieces", "piece": name, "layer": layer, "images": images}
                    row["precision"] = precision
                    yield from _contest(row, kind, pairs, flop, peaks[precision])


def _cases(layer: str, images: int, precision: str) -> Iterator[tuple[str, str, Pairs]]:
    side, channels = LAYERS[layer]
    first = channels < 16
    if first and precision == "bf16":
        return  # bf16 leaves the first layer as it is
    make = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=make, device=DEVICE)
        return drawn.bfloat16() if precision == "bf16" else drawn

    a, a_dot = (draw(images, side, side, channels) for _ in range(2))
    gz, gz_dot = (draw(images, side, side, WIDTH) for _ in range(2))
    w, w_dot = (draw(3, 3, channels, WIDTH) for _ in range(2))
    yield FORWARD, FORWARD, [(a, w)]
    yield WEIGHTS, WEIGHTS, [(a, gz)]
    if not first:  # its input has no tangent, and nobody wants its gradient
        yield TRANSPOSED, TRANSPOSED, [(gz, w)]
        yield "tangent of the convolution", FORWARD, [(a, w_dot), (a_dot, w)]
        yield "tangent of the input gradient", TRANSPOSED, [(gz, w_dot), (gz_dot, w)]
        yield "tangent of the weight gradient", WEIGHTS, [(a, gz_dot), (a_dot, gz)]


def _contest(row: Row, kind: str, pairs: Pairs, flop: int, peak: float) -> Iterator[Row]:
    precision = row["precision"]
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    truth = _library(kind, [(x.double(), y.double()) for x, y in pairs])()
    library, ours = _library(kind, pairs), _ours(kind, pairs, precision)
    theirs, error = relative_rms(library(), truth), relative_rms(ours(), truth)

    def speed(run: Run) -> tuple[float, Row]:
        seconds, how = seconds_each([run] * 4, SECONDS)
        columns = {"us": seconds * 1e6, "tflops": flop / seconds / 1e12}
        return seconds, {**columns, "of_peak": flop / seconds / peak, "timed": how}

    seconds, columns = speed(library)
    yield {**row, "by": "cuDNN" if ON_GPU else "torch", "error": theirs, **columns}
    row = {**row, "by": "ours", "error": error}
    if not error <= FACTOR * theirs + ROUNDING:
        yield {**row, "failed": f"disagrees with float64, cuDNN's error is {theirs:.2g}"}
        return
    own, columns = speed(ours)
    yield {**row, **columns, "faster_than_cudnn": seconds / own}


def _library(kind: str, pairs: Pairs) -> Run:
    """By torch, channels last; the weights are laid out beforehand."""
    last = torch.channels_last
    if kind == WEIGHTS:
        like = (pairs[0][1].shape[-1], pairs[0][0].shape[-1], 3, 3)
        w = pairs[0][0].new_empty(like).contiguous(memory_format=last)
        rest = (w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False])
        images_first = [(gz.permute(0, 3, 1, 2), a.permute(0, 3, 1, 2)) for a, gz in pairs]

        def gradient() -> Tensor:
            backward: Any = torch.ops.aten.convolution_backward
            parts = [backward(gz, a, *rest)[1] for gz, a in images_first]
            return sum(parts[1:], parts[0]).permute(2, 3, 1, 0)

        return gradient
    convolve = torch.conv2d if kind == FORWARD else torch.conv_transpose2d
    operands = [
        (x.permute(0, 3, 1, 2), w.permute(3, 2, 0, 1).contiguous(memory_format=last))
        for x, w in pairs
    ]

    def convolution() -> Tensor:
        parts = [convolve(x, w, padding=1) for x, w in operands]
        return sum(parts[1:], parts[0]).permute(0, 2, 3, 1)

    return convolution


def _ours(kind: str, pairs: Pairs, precision: str) -> Run:
    from fastmtt.kernels import convolution, weight_gradient

    multiplied = "ieee" if precision == "fp32" else precision
    (x, y), (x_dot, _) = pairs[0], pairs[-1]
    pairs = [(one[None], other[None]) for one, other in pairs]
    if kind == WEIGHTS:
        channels = y.shape[-1]
        gw = x.new_empty(1, 3, 3, x.shape[-1], channels, dtype=torch.float32)
        norm_parts = [gw.new_zeros(1, len(x), channels) for _ in range(2)]
        norms = [gw.new_empty(1, channels) for _ in range(2)]

        def gradient() -> Tensor:
            parts = weight_gradient.weight_gradient(pairs, gw, multiplied)
            weight_gradient.add_parts(parts, norm_parts, gw, *norms)
            return gw[0]

        return gradient
    transposed = kind == TRANSPOSED
    out = x.new_empty(1, *x.shape[:3], y.shape[2 if transposed else 3], dtype=torch.float32)
    w, w_dot = pairs[-1][1].float(), pairs[0][1].float()

    def convolve() -> Tensor:
        if len(pairs) == 1:
            convolution.convolve(x[None], w, out, multiplied, transposed=transposed)
        else:
            convolution.convolve_tangent(
                x[None], x_dot[None], w, w_dot, None, out, multiplied, transposed=transposed
            )
        return out[0]

    return convolve
