"""The weight gradient of the 3x3 convolution: a product over all pixels of all images.

``gw[tap, ci, co]`` sums ``a[pixel + tap, ci] * gz[pixel, co]``. Rows of the product are the pairs
(tap, ci), so that a network's first layer with its 27 rows and a tile of two taps are one kernel.
A program owns a tile of one student's product over a part of the pixels; the parts are summed in a
fixed order afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from fastmtt.kernels import hopper_weight_gradient
from fastmtt.kernels.precision import multiply
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit(do_not_specialize=["pixels", "part_pixels"])
def _weight_gradient(
    a,
    gz,
    a_second,
    gz_second,
    parts,
    student_stride,
    pixels,
    part_pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CIN: tl.constexpr,
    COUT: tl.constexpr,
    TWO: tl.constexpr,
    PRECISION: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    columns: tl.constexpr = (COUT + N - 1) // N
    first_row = tl.program_id(0) // columns * M
    row = (first_row + tl.arange(0, M))[None, :]
    co = (tl.program_id(0) % columns * N + tl.arange(0, N))[None, :]
    if CIN % M == 0:  # the tile is of one tap: masks cost little
        tap = first_row // CIN
        ci = first_row % CIN + tl.arange(0, M)[None, :]
    else:
        tap = row // CIN
        ci = row % CIN
    dy = tap // 3 - 1
    dx = tap % 3 - 1
    student = tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * part_pixels
    count = tl.minimum(part_pixels, pixels - first)
    begin = student * pixels + first
    steps = tl.cdiv(count, K)
    acc = tl.zeros((M, N), tl.float32)
    for step in range(0, 2 * steps if TWO else steps):
        a_now, gz_now, place = a, gz, step
        if TWO:  # one loop for both pairs: two would need twice the registers
            a_now = tl.where(step < steps, a, a_second)
            gz_now = tl.where(step < steps, gz, gz_second)
            place = tl.where(step < steps, step, step - steps)
        pixel = place * K + tl.arange(0, K)
        y = (first + pixel) % (HEIGHT * WIDTH) // WIDTH
        x = (first + pixel) % WIDTH
        inside = (pixel < count)[:, None]
        sy, sx = y[:, None] + dy, x[:, None] + dx
        seen = inside & (sy >= 0) & (sy < HEIGHT) & (sx >= 0) & (sx < WIDTH) & (row < 9 * CIN)
        source = (pixel[:, None] + (dy * WIDTH + dx)) * CIN + ci
        a_tile = tl.load(a_now + begin * CIN + source, mask=seen, other=0.0)
        gz_at = gz_now + begin * COUT + pixel[:, None] * COUT + co
        gz_tile = tl.load(gz_at, mask=inside & (co < COUT), other=0.0)
        acc = multiply(tl.trans(a_tile), gz_tile, acc, PRECISION)
    target = parts + student * student_stride + tl.program_id(1).to(tl.int64) * (9 * CIN * COUT)
    row = tl.trans(row)
    tl.store(target + row * COUT + co, acc, mask=(row < 9 * CIN) & (co < COUT))


@triton.jit
def _add(parts, out, count, size, block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    column = (block * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, count, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        total += tl.load(
            parts + row * size + column, mask=(row < count) & (column < size), other=0.0
        )
    tl.store(out + column, tl.sum(total, 0, keep_dims=True), mask=column < size)


@triton.jit(do_not_specialize=["w_count", "images"])
def _add_parts(
    w_parts,
    gamma_parts,
    beta_parts,
    gw,
    ggamma,
    gbeta,
    w_stride,
    gamma_stride,
    beta_stride,
    w_count,
    w_size,
    images,
    CHANNELS: tl.constexpr,
    W_ROWS: tl.constexpr,
    NORM_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    student = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    block = tl.program_id(0)
    norm_part = student * images * CHANNELS
    if block < blocks:
        out = ggamma + student * gamma_stride
        _add(gamma_parts + norm_part, out, images, CHANNELS, block, NORM_ROWS, COLUMNS)
    elif block < 2 * blocks:
        out = gbeta + student * beta_stride
        _add(beta_parts + norm_part, out, images, CHANNELS, block - blocks, NORM_ROWS, COLUMNS)
    else:
        w_part = w_parts + student * w_count * w_size
        out = gw + student * w_stride
        _add(w_part, out, w_count, w_size, block - 2 * blocks, W_ROWS, COLUMNS)


def weight_gradient(
    pairs: Sequence[tuple[Tensor, Tensor]], gw: Tensor, precision: str
) -> Tensor | None:
    """Sum the weight gradients of (a, gz) over one or two pairs.

    Args:
        pairs: a [S,B,H,W,Cin] and gz [S,B,H,W,Cout], contiguous, all float32 or all bfloat16.
        gw: [S,3,3,Cin,Cout], contiguous for each student, to be written into.
        precision: of :mod:`fastmtt.kernels.precision`.

    Returns:
        None, or the parts [S,n,9*Cin*Cout] still to be summed into gw by :func:`add_parts`.
    """
    students, images, height, width, cin = pairs[0][0].shape
    cout = gw.shape[-1]
    (a, gz), (a_second, gz_second) = pairs[0], pairs[-1]
    pixels = images * height * width

    def run(config: Config) -> Tensor | None:
        if "CUDNN" in config.sizes:
            _library_gradient(pairs, gw)
            return None
        if "HOPPER" in config.sizes:
            return hopper_weight_gradient.parts(config, pairs)
        rows, columns, depth = (config.sizes[name] for name in "MNK")
        tiles = triton.cdiv(9 * cin, rows) * triton.cdiv(cout, columns)
        part_pixels = _part(pixels, tiles * students, depth, a)
        count = triton.cdiv(pixels, part_pixels)
        size = 9 * cin * cout
        parts = None if count == 1 else gw.new_empty(students, count, size)
        _weight_gradient[(tiles, count, students)](
            a,
            gz,
            a_second,
            gz_second,
            gw if parts is None else parts,
            gw.stride(0) if parts is None else count * size,
            pixels,
            part_pixels,
            HEIGHT=height,
            WIDTH=width,
            CIN=cin,
            COUT=cout,
            TWO=len(pairs) == 2,
            PRECISION=precision,
            **config.launch,
        )
        return parts

    offered = configs(cin, cout, precision) + hopper_weight_gradient.plans(pairs, precision)
    if students == 1 and a.is_cuda and precision != "bf16":  # it would round the result itself
        offered.append(Config({"CUDNN": 1}))
    key = (students, images, height, width, cin, cout, len(pairs), precision)
    return run(choose("weight_gradient", key, offered, run))


def _part(pixels: int, tiles: int, depth: int, like: Tensor) -> int:
    """Pixels a program sums: so many that two programs come on each multiprocessor."""
    processors = (
        torch.cuda.get_device_properties(like.device).multi_processor_count if like.is_cuda else 8
    )
    count = max(1, min(2 * processors // tiles, pixels // (4 * depth)))
    return triton.cdiv(triton.cdiv(pixels, count), depth) * depth


def _library_gradient(pairs: Sequence[tuple[Tensor, Tensor]], gw: Tensor) -> None:
    """The same by cuDNN, one student."""
    target = gw[0].permute(3, 2, 0, 1)
    for place, (a, gz) in enumerate(pairs):
        with torch.backends.cudnn.flags(
            enabled=True,
            benchmark=False,
            deterministic=True,
            allow_tf32=torch.backends.cudnn.allow_tf32,
        ):
            found = torch.ops.aten.convolution_backward(
                gz[0].permute(0, 3, 1, 2),
                a[0].permute(0, 3, 1, 2),
                torch.empty_like(target, memory_format=torch.channels_last),
                None,
                [1, 1],
                [1, 1],
                [1, 1],
                False,
                [0, 0],
                1,
                [False, True, False],
            )[1]
        target.copy_(found) if place == 0 else target.add_(found)


def add_parts(
    w_parts: Tensor | None,
    norm_parts: Sequence[Tensor],
    gw: Tensor,
    ggamma: Tensor,
    gbeta: Tensor,
) -> None:
    """Sum the parts of all parameters' gradients in one launch.

    Args:
        w_parts: [S,n,9*Cin*Cout], None where gw is complete.
        norm_parts: of gamma and beta, [S,B,C] each.
        gw: contiguous for each student, to be written into.
        ggamma: as gw.
        gbeta: as gw.
    """
    students, images, channels = norm_parts[0].shape
    count, size = (0, 0) if w_parts is None else w_parts.shape[1:]
    columns = 32
    blocks = 2 * triton.cdiv(channels, columns) + triton.cdiv(size, columns)
    _add_parts[(blocks, students)](
        gw if w_parts is None else w_parts,
        *norm_parts,
        gw,
        ggamma,
        gbeta,
        gw.stride(0),
        ggamma.stride(0),
        gbeta.stride(0),
        count,
        size,
        images,
        CHANNELS=channels,
        W_ROWS=_rows(count),
        NORM_ROWS=_rows(images),
        COLUMNS=columns,
        num_warps=4,
    )


def _rows(count: int) -> int:
    """Parts read at once: all of few, for reading some after others takes longest."""
    return min(max(triton.next_power_of_2(count), 4), 128)


def configs(cin: int, cout: int, precision: str) -> list[Config]:
    """Tiles of the product; small ones first, which suit narrow networks."""
    rows, columns = max(16, triton.next_power_of_2(9 * cin)), max(16, triton.next_power_of_2(cout))
    # of bfloat16's tiles those that spill nothing on sm_80
    wide = ((128, 128, 64, 8, 3), (256, 128, 32, 8, 4))
    full = ((128, 128, 32, 4, 3), (128, 128, 32, 8, 3), (256, 128, 32, 8, 3))
    tiles = ((64, 64, 32, 4, 3), *(wide if precision == "bf16" else full))
    found: dict[str, Config] = {}
    for m, n, k, warps, stages in tiles:
        config = Config({"M": min(m, rows), "N": min(n, columns), "K": k}, warps, stages)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    operands = ("a", "gz", "a_second", "gz_second")
    integers = ("student_stride", "pixels", "part_pixels")
    for (side, cin), precision in product(
        ((32, 3), (32, 128), (16, 128), (8, 128)), ("tf32", "bf16")
    ):
        if cin == 3 and precision == "bf16":
            continue
        stored = "*bf16" if precision == "bf16" else "*fp32"
        signature = dict.fromkeys(operands, stored) | dict.fromkeys(integers, "i32")
        signature["parts"] = "*fp32"
        constants: dict[str, Any] = {"HEIGHT": side, "WIDTH": side, "CIN": cin, "COUT": 128}
        constants["PRECISION"] = precision
        for config, two in product(configs(cin, 128, precision), (False, True)):
            name = (
                f"weight_gradient {side}x{side}x{cin} {'tangent' if two else 'primal'} {precision}"
            )
            yield name, _weight_gradient, signature, constants | {"TWO": two}, config
