"""The ConvNet block: convolution, instance norm, ReLU and pool, in one kernel for small planes.

A program then owns whole images, so that the statistics are complete while the convolution is in
registers. Other planes take two kernels, and the convolution goes through memory once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels import first_layer, hopper, norm, precision
from fastmtt.kernels.contraction import FEW, contract, contract_directly
from fastmtt.kernels.convolution import Operands, fitted, run, tile
from fastmtt.kernels.norm import normalised, pooled, whole_planes
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor

_PLANE = 256  # pixels; larger planes leave too few channels a program
_PLANE_OF_FEW = 1024  # the same where a program loads no weights to speak of

TWO_KERNELS = Config({"BLOCK_M": 0})


@triton.jit(do_not_specialize=["images"])
def _conv_block(
    a,
    w,
    gamma,
    beta,
    p,
    xhat,
    rstd,
    images,
    w_stride,
    gamma_stride,
    beta_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
):
    """A program owns BLOCK_M pixels, which are whole images, and BLOCK_N channels."""
    area: tl.constexpr = HEIGHT * WIDTH
    tiles: tl.constexpr = tl.cdiv(C_OUT, BLOCK_N)
    student = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) // tiles * (BLOCK_M // area)
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = columns < C_OUT
    image, y, x = whole_planes(BLOCK_M, HEIGHT, WIDTH)
    present = image < images - first
    pixels = image * area + y * WIDTH + x
    base = student * images + first
    a += base * (area * C_IN)
    w += student * w_stride
    if PRECISION == "direct":
        z, _ = contract_directly(
            a, w, w, pixels, y, x, present, columns, HEIGHT, WIDTH, C_IN, C_OUT, True, False
        )  # fmt: skip
    else:
        z, _ = contract(
            a, a, w, w, pixels, y, x, present, columns, HEIGHT, WIDTH, C_IN, C_OUT, BLOCK_K,
            COPY, True, False, False, PRECISION,
        )  # fmt: skip

    xhat += base * (area * C_OUT)
    p += base * (area // 4 * C_OUT)
    rstd += base * C_OUT
    z, scale = normalised(z, area // 4)
    planes = tl.arange(0, BLOCK_M // area)
    mask = (planes < images - first)[:, None] & wanted[None, :]
    tl.store(rstd + planes[:, None] * C_OUT + columns[None, :], scale, mask=mask)
    g = tl.load(gamma + student * gamma_stride + columns, mask=wanted)
    b = tl.load(beta + student * beta_stride + columns, mask=wanted)
    n = pooled(tl.maximum(z * g[None, :] + b[None, :], 0.0), area // 4) * 0.25
    windows = tl.arange(0, BLOCK_M // 4)
    mask = (windows < (images - first) * (area // 4))[:, None] & wanted[None, :]
    place = p + windows[:, None] * C_OUT + columns[None, :]
    tl.store(place, n, mask=mask)
    # Last, because a store shuffles all of z between threads, into as many registers again.
    mask = present[:, None] & wanted[None, :]
    tl.store(xhat + pixels[:, None] * C_OUT + columns[None, :], z, mask=mask)


def conv_block(
    a: Tensor,
    w: Tensor,
    gamma: Tensor,
    beta: Tensor,
    bf16: bool = False,
    *,
    into: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`fastmtt.ops.reference_block.conv_block`.

    Args:
        a: float32 [S,B,H,W,Cin], contiguous.
        w: [S,3,3,Cin,Cout], contiguous for each student, as are gamma and beta.
        gamma: [S,Cout].
        beta: [S,Cout].
        bf16: whether a convolution of enough channels multiplies in bfloat16.
        into: where p, xhat and rstd go, contiguous; None for fresh tensors.
    """
    students, images, height, width, c_in = a.shape
    c_out = w.shape[-1]
    p, xhat, rstd = results(
        into,
        a,
        (students, images, height // 2, width // 2, c_out),
        (students, images, height, width, c_out),
        (students, images, c_out),
    )
    mode = precision.of(a, c_in, bf16)

    operands = Operands(a, None, w, None, mode)

    def two_kernels() -> None:
        run(operands, xhat, None)
        norm.forward(xhat, gamma, beta, p, rstd)

    directly = direct(mode, c_in)
    if directly and not fits(height, width, c_in):
        two_kernels()
        return p, xhat, rstd
    if directly:
        mode = "direct"

    def launch(config: Config) -> None:
        if config is TWO_KERNELS:
            two_kernels()
            return
        if hopper.serves(config):
            hopper.conv_block(config, (a, w, gamma, beta), (p, xhat, rstd))
            return
        if first_layer.serves(config):
            first_layer.conv_block(config, a, (w, gamma, beta), (p, xhat, rstd), mode)
            return
        source, _, weights, _ = (a, a, w, w) if directly else operands.prepared()
        _conv_block[grid(config, a, c_out)](
            source,
            weights,
            gamma,
            beta,
            p,
            xhat,
            rstd,
            images,
            weights.stride(0),
            gamma.stride(0),
            beta.stride(0),
            HEIGHT=height,
            WIDTH=width,
            C_IN=c_in,
            C_OUT=c_out,
            PRECISION=mode,
            **config.launch,
        )

    configs = configurations(mode, height * width, c_in, c_out)
    configs = [*(configs if fits(height, width, c_in) else []), TWO_KERNELS]
    configs += hopper.plans((a, xhat), mode, (p, rstd), primal=True, tangent=False)
    configs += first_layer.plans(a, c_out, mode)
    launch(choose("conv_block", (*a.shape, c_out, mode), configs, launch))
    return p, xhat, rstd


BLOCKS = (
    ("direct", 32, 3),
    ("tf32", 32, 3),
    *((m, side, 128) for m in ("tf32", "bf16") for side in (16, 8)),
)


def sizes(mode: str, side: int, c_in: int) -> dict[str, Any]:
    """The constants of a standard ConvNet's block."""
    return {"HEIGHT": side, "WIDTH": side, "C_IN": c_in, "C_OUT": 128, "PRECISION": mode}


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What a standard ConvNet compiles: (name, kernel, types, constants, configuration) each."""
    for mode, side, c_in in BLOCKS:
        kind = "*bf16" if mode == "bf16" else "*fp32"
        types = dict.fromkeys(_conv_block.arg_names, "*fp32") | {"a": kind, "w": kind}
        types |= {name: "i32" for name in types if name.endswith("_stride") or name == "images"}
        constants = sizes(mode, side, c_in)
        for config in configurations(mode, side * side, c_in, constants["C_OUT"]):
            yield f"conv_block {mode} {side}x{side}", _conv_block, types, constants, config


def configurations(mode: str, area: int, c_in: int, c_out: int) -> list[Config]:
    """Tiles of whole planes worth trying: few, and none that spills registers (see the tests)."""
    if mode == "direct":
        return [tile(max(area, 128), 8, 1, 8, 1), tile(max(area, 128), 16, 1, 8, 1)]
    if c_in <= FEW:
        pixels = max(area, 128)
        return [
            tile(pixels, 16, 16, 8, 1),
            tile(pixels, 16, 32, 8, 1),
            tile(pixels, 8, 16, 8, 1),
        ]
    return [c for c in fitted(_TILES[mode], c_in, c_out) if c.sizes["BLOCK_M"] >= area]


_TILES = {
    "tf32": [
        tile(256, 64, 32, 8, 3),
        tile(256, 128, 32, 8, 3),
        tile(256, 128, 32, 8, 3, copy=16),
        tile(256, 32, 32, 8, 3),
        tile(128, 128, 32, 8, 3),
        tile(64, 64, 32, 4, 4),
    ],
    "bf16": [
        tile(256, 64, 64, 8, 3),
        tile(256, 128, 64, 8, 3, capability=90),
        tile(256, 128, 64, 8, 3, copy=16, capability=90),
        tile(256, 32, 64, 8, 3),
        tile(128, 128, 64, 8, 3),
        tile(64, 64, 64, 4, 4),
    ],
    "ieee": [tile(256, 32, 16, 8, 2, copy=16), tile(64, 64, 16, 8, 2, copy=16)],
}


def fits(height: int, width: int, c_in: int) -> bool:
    """Whether programs can own whole planes of this size."""
    powers = all(side >= 2 and side & (side - 1) == 0 for side in (height, width))
    return powers and height * width <= (_PLANE_OF_FEW if c_in <= FEW else _PLANE)


def direct(mode: str, c_in: int) -> bool:
    """Whether plain multiply-adds do: few input channels in float32, which tensor cores lack."""
    return mode == "ieee" and c_in <= FEW


def grid(config: Config, a: Tensor, c_out: int) -> tuple[int, int]:
    """Programs of a kernel over whole planes, by students."""
    students, images, height, width, _ = a.shape
    groups = triton.cdiv(images, config.sizes["BLOCK_M"] // (height * width))
    return groups * triton.cdiv(c_out, config.sizes["BLOCK_N"]), students


def results(
    into: Sequence[Tensor] | None, like: Tensor, *shapes: tuple[int, ...] | None
) -> list[Tensor]:
    """Where a block's results go: given tensors, or fresh ones, empty for a shape of None.

    Raises:
        RuntimeError: a given tensor has another shape or dtype, or is not contiguous.
    """
    if into is None:
        return [like.new_empty((0,) if shape is None else shape) for shape in shapes]
    places = list(into[: len(shapes)])
    for place, shape in zip(places, shapes, strict=True):
        if shape is None or (
            place.shape == shape and place.dtype == like.dtype and place.is_contiguous()
        ):
            continue
        raise RuntimeError(
            f"a block's result must be a contiguous {like.dtype} tensor of shape {list(shape)} to "
            f"be written into, got {place.dtype} of shape {list(place.shape)} and strides "
            f"{list(place.stride())}"
        )
    return places
