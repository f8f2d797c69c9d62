"""The ConvNet block's tangent, with its primal: both convolutions share what they load."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels import first_layer, hopper, norm, precision
from fastmtt.kernels.contraction import FEW, contract, contract_directly
from fastmtt.kernels.conv_block import BLOCKS, TWO_KERNELS, direct, fits, grid, results, sizes
from fastmtt.kernels.convolution import Operands, fitted, run, tile
from fastmtt.kernels.norm import normalised, of_planes, pooled, to_pixels, whole_planes
from fastmtt.kernels.tuning import Config, choose
from torch import Tensor


@triton.jit
def _finish(
    z,
    z_dot,
    columns,
    pixels,
    present,
    gamma,
    gamma_dot,
    beta,
    beta_dot,
    p,
    p_dot,
    xhat,
    rstd,
    xhat_dot,
    rstd_dot,
    images,
    area: tl.constexpr,
    C_OUT: tl.constexpr,
    GIVEN: tl.constexpr,
):
    """Norm, ReLU, pool and their tangents for some channels, of which ``images`` are left."""
    rows: tl.constexpr = z.shape[0]
    wanted = columns < C_OUT
    place = pixels[:, None] * C_OUT + columns[None, :]
    mask = present[:, None] & wanted[None, :]
    planes = tl.arange(0, rows // area)
    plane_place = planes[:, None] * C_OUT + columns[None, :]
    plane_mask = (planes < images)[:, None] & wanted[None, :]
    if GIVEN:
        z = tl.load(xhat + place, mask=mask, other=0.0)
        scale = tl.load(rstd + plane_place, mask=plane_mask, other=0.0)
    else:
        z, scale = normalised(z, area // 4)
        tl.store(rstd + plane_place, scale, mask=plane_mask)
    correlation = of_planes(z * z_dot, area // 4)
    tl.store(rstd_dot + plane_place, -scale * scale * correlation, mask=plane_mask)
    z_dot -= to_pixels(of_planes(z_dot, area // 4), rows, area // 4)
    z_dot -= z * to_pixels(correlation, rows, area // 4)
    z_dot *= to_pixels(scale, rows, area // 4)

    if not GIVEN:
        tl.store(xhat + place, z, mask=mask)
    tl.store(xhat_dot + place, z_dot, mask=mask)
    g = tl.load(gamma + columns, mask=wanted)[None, :]
    g_dot = tl.load(gamma_dot + columns, mask=wanted)[None, :]
    b = tl.load(beta + columns, mask=wanted)[None, :]
    b_dot = tl.load(beta_dot + columns, mask=wanted)[None, :]
    n = z * g + b
    n_dot = tl.where(n > 0.0, z * g_dot + b_dot + z_dot * g, 0.0)
    windows = tl.arange(0, rows // 4)
    place = windows[:, None] * C_OUT + columns[None, :]
    mask = (windows < (images) * (area // 4))[:, None] & wanted[None, :]
    tl.store(p + place, pooled(tl.maximum(n, 0.0), area // 4) * 0.25, mask=mask)
    tl.store(p_dot + place, pooled(n_dot, area // 4) * 0.25, mask=mask)


@triton.jit(do_not_specialize=["images"])
def _conv_block_jvp(
    a,
    a_dot,
    w,
    w_dot,
    gamma,
    gamma_dot,
    beta,
    beta_dot,
    p,
    p_dot,
    xhat,
    rstd,
    xhat_dot,
    rstd_dot,
    images,
    w_stride,
    w_dot_stride,
    gamma_stride,
    gamma_dot_stride,
    beta_stride,
    beta_dot_stride,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    GIVEN: tl.constexpr,
    MOVES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
):
    """A program owns whole images as in the primal's kernel; it reads xhat and rstd if GIVEN."""
    area: tl.constexpr = HEIGHT * WIDTH
    tiles: tl.constexpr = tl.cdiv(C_OUT, BLOCK_N)
    student = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) // tiles * (BLOCK_M // area)
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    image, y, x = whole_planes(BLOCK_M, HEIGHT, WIDTH)
    present = image < images - first
    pixels = image * area + y * WIDTH + x
    base = student * images + first
    a += base * (area * C_IN)
    a_dot += base * (area * C_IN)
    w += student * w_stride
    w_dot += student * w_dot_stride
    if PRECISION == "direct":
        z, z_dot = contract_directly(
            a, w, w_dot, pixels, y, x, present, columns, HEIGHT, WIDTH, C_IN, C_OUT,
            not GIVEN, True,
        )  # fmt: skip
    else:
        z, z_dot = contract(
            a, a_dot, w, w_dot, pixels, y, x, present, columns, HEIGHT, WIDTH, C_IN, C_OUT,
            BLOCK_K, COPY, not GIVEN, True, MOVES, PRECISION,
        )  # fmt: skip

    gamma += student * gamma_stride
    gamma_dot += student * gamma_dot_stride
    beta += student * beta_stride
    beta_dot += student * beta_dot_stride
    xhat += base * (area * C_OUT)
    xhat_dot += base * (area * C_OUT)
    p += base * (area // 4 * C_OUT)
    p_dot += base * (area // 4 * C_OUT)
    rstd += base * C_OUT
    rstd_dot += base * C_OUT
    if BLOCK_N > 32:  # in halves, for all that this takes of a wide tile exceeds the registers
        z_left, z_right = tl.split(tl.permute(tl.reshape(z, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        dot_left, dot_right = tl.split(
            tl.permute(tl.reshape(z_dot, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
        )
        half = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        _finish(
            z_left, dot_left, half, pixels, present, gamma, gamma_dot, beta, beta_dot, p, p_dot,
            xhat, rstd, xhat_dot, rstd_dot, images - first, area, C_OUT, GIVEN,
        )  # fmt: skip
        _finish(
            z_right, dot_right, half + BLOCK_N // 2, pixels, present, gamma, gamma_dot, beta,
            beta_dot, p, p_dot, xhat, rstd, xhat_dot, rstd_dot, images - first, area, C_OUT, GIVEN,
        )  # fmt: skip
    else:
        _finish(
            z, z_dot, columns, pixels, present, gamma, gamma_dot, beta, beta_dot, p, p_dot,
            xhat, rstd, xhat_dot, rstd_dot, images - first, area, C_OUT, GIVEN,
        )  # fmt: skip


def conv_block_jvp(
    a: Tensor,
    a_dot: Tensor | None,
    w: Tensor,
    w_dot: Tensor,
    gamma: Tensor,
    gamma_dot: Tensor,
    beta: Tensor,
    beta_dot: Tensor,
    xhat: Tensor | None,
    rstd: Tensor | None,
    bf16: bool = False,
    *,
    into: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See :func:`fastmtt.ops.reference_block.conv_block_jvp`; arguments as for conv_block.

    Args:
        a: float32 [S,B,H,W,Cin], contiguous.
        a_dot: its tangent; None for zero.
        w: [S,3,3,Cin,Cout], contiguous for each student, as are all parameters and tangents.
        w_dot: like w.
        gamma: [S,Cout].
        gamma_dot: like gamma.
        beta: like gamma.
        beta_dot: like gamma.
        xhat: [S,B,H,W,Cout] if the statistics are known. So is rstd.
        rstd: [S,B,Cout].
        bf16: whether a convolution of enough channels multiplies in bfloat16.
        into: where p, p_dot, xhat_dot, rstd_dot, xhat, rstd go, contiguous; None for fresh tensors.
            The last two are left alone where they are known.
    """
    students, images, height, width, c_in = a.shape
    c_out = w.shape[-1]
    given = xhat is not None and rstd is not None
    small, large, planes = (
        (students, images, height // 2, width // 2, c_out),
        (students, images, height, width, c_out),
        (students, images, c_out),
    )
    found = results(
        into, a, small, small, large, planes, None if given else large, None if given else planes
    )
    p, p_dot, xhat_dot, rstd_dot, new_xhat, new_rstd = found
    if xhat is None or rstd is None:
        xhat, rstd = new_xhat, new_rstd
    returned = p, p_dot, xhat_dot, rstd_dot, new_xhat, new_rstd
    parameters = gamma, gamma_dot, beta, beta_dot
    mode = precision.of(a, c_in, bf16)

    operands = Operands(a, a_dot, w, w_dot, mode)

    def two_kernels() -> None:
        run(operands, None if given else xhat, xhat_dot)
        norm.jvp(xhat, rstd, xhat_dot, rstd_dot, parameters, p, p_dot, given=given)

    directly = direct(mode, c_in)
    if directly and (a_dot is not None or not fits(height, width, c_in)):
        two_kernels()
        return returned
    if directly:
        mode = "direct"

    def launch(config: Config) -> None:
        if config is TWO_KERNELS:
            two_kernels()
            return
        if hopper.serves(config):
            inputs = a, a_dot, w, w_dot, *parameters
            places = p, p_dot, xhat_dot, rstd_dot, xhat, rstd
            hopper.conv_block_jvp(config, inputs, places, given=given)
            return
        if first_layer.serves(config):
            primal, tangent = (w, gamma, beta), (w_dot, gamma_dot, beta_dot)
            dots = p_dot, xhat_dot, rstd_dot
            first_layer.conv_block(
                config, a, primal, (p, xhat, rstd), mode, tangent, dots, given=given
            )
            return
        pointers = (a, a, w, w_dot) if directly else operands.prepared()
        _conv_block_jvp[grid(config, a, c_out)](
            *pointers,
            *parameters,
            p,
            p_dot,
            xhat,
            rstd,
            xhat_dot,
            rstd_dot,
            images,
            *(t.stride(0) for t in (*pointers[2:], *parameters)),
            HEIGHT=height,
            WIDTH=width,
            C_IN=c_in,
            C_OUT=c_out,
            GIVEN=given,
            MOVES=a_dot is not None,
            PRECISION=mode,
            **config.launch,
        )

    configs = configurations(mode, height * width, c_in, c_out)
    configs = [*(configs if fits(height, width, c_in) else []), TWO_KERNELS]
    if a_dot is None:
        configs += first_layer.plans(a, c_out, mode)
    else:
        activations = a, a_dot, xhat, xhat_dot
        others = p, p_dot, rstd, rstd_dot
        configs += hopper.plans(activations, mode, others, primal=not given, tangent=True)
    key = (*a.shape, c_out, mode, given, a_dot is not None)
    launch(choose("conv_block_jvp", key, configs, launch))
    return returned


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What a standard ConvNet compiles: (name, kernel, types, constants, configuration) each."""
    for mode, side, c_in in BLOCKS:
        kind = "*bf16" if mode == "bf16" else "*fp32"
        types = dict.fromkeys(_conv_block_jvp.arg_names, "*fp32")
        types |= {name: kind for name in ("a", "a_dot", "w", "w_dot")}
        types |= {name: "i32" for name in types if name.endswith("_stride") or name == "images"}
        for given in (False, True):
            constants = sizes(mode, side, c_in) | {"GIVEN": given, "MOVES": c_in > FEW}
            name = f"conv_block_jvp {mode} {side}x{side}" + (" given" if given else "")
            for config in configurations(mode, side * side, c_in, constants["C_OUT"]):
                yield name, _conv_block_jvp, types, constants, config


def configurations(mode: str, area: int, c_in: int, c_out: int) -> list[Config]:
    """Tiles of whole planes worth trying: few, and none that spills registers (see the tests)."""
    if mode == "direct":
        return [tile(max(area, 128), 8, 1, 16, 1, capability=90)]
    if c_in <= FEW:
        return [tile(max(area, 128), 8, 16, 8, 1), tile(max(area, 128), 8, 32, 8, 1)]
    return [c for c in fitted(_TILES[mode], c_in, c_out) if c.sizes["BLOCK_M"] >= area]


_TILES = {
    "tf32": [
        tile(64, 64, 32, 4, 2),
        tile(128, 64, 32, 8, 2),
        tile(256, 32, 32, 8, 2),
    ],
    "bf16": [
        tile(64, 64, 64, 4, 2),
        tile(128, 64, 64, 8, 2),
        tile(256, 32, 64, 8, 2, capability=90),
    ],
    # no 16 channels: Triton 3.6 then multiplies wrong numbers, see contraction.py
    "ieee": [tile(256, 32, 16, 8, 2, copy=16), tile(64, 32, 16, 8, 2, copy=16)],
}
