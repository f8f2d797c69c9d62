"""The 3x3 convolution, its input gradient and their tangents, of planes of any size.

The input gradient is the same product with the weights transposed and the taps turned round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from fastmtt.kernels import hopper
from fastmtt.kernels.contraction import contract
from fastmtt.kernels.tuning import Config, choose
from fastmtt.kernels.weights import laid_out
from torch import Tensor


@triton.jit(do_not_specialize=["pixels_of_student"])
def _convolution(
    a,
    a_dot,
    w,
    w_dot,
    out,
    out_dot,
    pixels_of_student,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    PRIMAL: tl.constexpr,
    TANGENT: tl.constexpr,
    MOVES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COPY: tl.constexpr,
):
    """A program owns BLOCK_M successive pixels of one student's images, BLOCK_N channels."""
    tiles: tl.constexpr = tl.cdiv(C_OUT, BLOCK_N)
    first = tl.program_id(0) // tiles * BLOCK_M
    student = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    pixels = tl.arange(0, BLOCK_M)
    present = pixels < pixels_of_student - first
    base = student * pixels_of_student + first
    z, z_dot = contract(
        a + base * C_IN,
        a_dot + base * C_IN,
        w + student * (9 * C_IN * C_OUT),
        w_dot + student * (9 * C_IN * C_OUT),
        pixels,
        (first + pixels) // WIDTH % HEIGHT,
        (first + pixels) % WIDTH,
        present,
        columns,
        HEIGHT,
        WIDTH,
        C_IN,
        C_OUT,
        BLOCK_K,
        COPY,
        PRIMAL,
        TANGENT,
        MOVES,
        PRECISION,
    )
    out += base * C_OUT
    out_dot += base * C_OUT
    place = pixels[:, None] * C_OUT + columns[None, :]
    mask = present[:, None] & (columns < C_OUT)[None, :]
    if PRIMAL:
        tl.store(out + place, z, mask=mask)
    if TANGENT or MOVES:
        tl.store(out_dot + place, z_dot, mask=mask)


def convolve(
    a: Tensor, w: Tensor, out: Tensor, precision: str, *, transposed: bool = False
) -> None:
    """Write a 3x3 convolution with padding 1 into ``out``.

    Args:
        a: [S,B,H,W,Cin], or the cotangent gz [S,B,H,W,Cout] if transposed; float32, or bfloat16
            if that is the precision.
        w: [S,3,3,Cin,Cout], contiguous for each student.
        out: float32 [S,B,H,W,Cout], or [S,B,H,W,Cin] if transposed.
        precision: of :mod:`fastmtt.kernels.precision`.
        transposed: compute the input gradient.
    """
    run(Operands(a, None, w, None, precision, transposed), out, None)


def convolve_tangent(
    a: Tensor,
    a_dot: Tensor | None,
    w: Tensor,
    w_dot: Tensor,
    out: Tensor | None,
    out_dot: Tensor,
    precision: str,
    *,
    transposed: bool = False,
) -> None:
    """Write conv(a, w_dot) + conv(a_dot, w) into ``out_dot`` and conv(a, w) into ``out``.

    Shapes and dtypes as for :func:`convolve`; ``a_dot=None`` stands for zero, and without ``out``
    the primal is left out.
    """
    run(Operands(a, a_dot, w, w_dot, precision, transposed), out, out_dot)


class Operands:
    """What a convolution reads.

    Attributes:
        tensors: (a, a_dot, w, w_dot) as given.
        constants: sizes and flags by the kernels' names, PRIMAL aside.
        key: what the choice of a configuration depends on.
    """

    def __init__(
        self,
        a: Tensor,
        a_dot: Tensor | None,
        w: Tensor,
        w_dot: Tensor | None,
        precision: str,
        transposed: bool = False,
    ) -> None:
        self.tensors = a, a_dot, w, w_dot
        self.precision, self.transposed = precision, transposed
        self.students, self.images, height, width, c_in = a.shape
        self.constants: dict[str, Any] = {
            "HEIGHT": height,
            "WIDTH": width,
            "C_IN": c_in,
            "C_OUT": w.shape[-2] if transposed else w.shape[-1],
            "TANGENT": w_dot is not None,
            "MOVES": a_dot is not None,
            "PRECISION": precision,
        }
        self.key = (self.students, self.images, *self.constants.values())

    def prepared(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, a_dot, w, w_dot) as Triton's kernels want them: rounded, aligned, w laid out.

        Stand-ins where a tangent is None.
        """
        a, a_dot, w, w_dot = self.tensors
        both = [w] if w_dot is None else [w, w_dot]
        weights = laid_out(both, self.precision, transposed=self.transposed)
        if self.precision == "bf16":
            a = a.to(torch.bfloat16)
            a_dot = None if a_dot is None else a_dot.to(torch.bfloat16)
        return a, a if a_dot is None else a_dot, weights[0], weights[-1]


def run(operands: Operands, out: Tensor | None, out_dot: Tensor | None) -> None:
    """As :func:`convolve_tangent`, of these operands."""
    constants = {**operands.constants, "PRIMAL": out is not None}
    pixels = operands.images * constants["HEIGHT"] * constants["WIDTH"]
    places = [t if t is not None else other for t, other in ((out, out_dot), (out_dot, out))]

    def launch(config: Config) -> None:
        if hopper.serves(config):
            hopper.convolution(config, operands.tensors, operands.transposed, (out, out_dot))
            return
        tiles = triton.cdiv(pixels, config.sizes["BLOCK_M"]) * triton.cdiv(
            constants["C_OUT"], config.sizes["BLOCK_N"]
        )
        _convolution[(tiles, operands.students)](
            *operands.prepared(), *places, pixels, **constants, **config.launch
        )

    configs = configurations(constants)
    a, a_dot, _, _ = operands.tensors
    tangent = out_dot is not None
    if tangent == constants["MOVES"] == constants["TANGENT"]:
        activations = a, a_dot, out, out_dot
        primal = out is not None
        configs += hopper.plans(activations, operands.precision, primal=primal, tangent=tangent)
    launch(choose("convolution", (*operands.key, out is not None), configs, launch))


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What ConvNets compile: (name, kernel, types, constants, configuration) each."""
    for precision in ("tf32", "bf16"):
        kind = "*bf16" if precision == "bf16" else "*fp32"
        types = dict.fromkeys(("a", "a_dot", "w", "w_dot"), kind)
        types |= {"out": "*fp32", "out_dot": "*fp32", "pixels_of_student": "i32"}
        for c_out, (primal, tangent) in product((128, 3), (_PRIMAL, _TANGENT, _BOTH)):
            constants: dict[str, Any] = {"HEIGHT": 32, "WIDTH": 32, "C_IN": 128, "C_OUT": c_out}
            constants |= {"PRIMAL": primal, "TANGENT": tangent, "MOVES": tangent}
            constants |= {"PRECISION": precision}
            name = f"convolution {precision} 128->{c_out}" + " primal" * primal
            for config in configurations(constants):
                yield name + " tangent" * tangent, _convolution, types, constants, config


_PRIMAL, _TANGENT, _BOTH = (True, False), (False, True), (True, True)


def configurations(constants: dict[str, Any]) -> list[Config]:
    """Tiles worth trying: few, and none that spills registers (see the tests)."""
    if constants["PRIMAL"] and constants["TANGENT"]:
        wanted = "both"
    else:
        wanted = "sum" if constants["MOVES"] else "one"
    precision = constants["PRECISION"]
    if precision == "ieee":
        tiles = [tile(64, 32, 16, 8, 2, copy=16)]
    else:
        tiles = _TILES[wanted](32 if precision == "tf32" else 64)
    return fitted(tiles, constants["C_IN"], constants["C_OUT"])


def tile(
    m: int, n: int, k: int, warps: int, stages: int, copy: int = 8, capability: int = 80
) -> Config:
    """A tile of m pixels and n output channels, k input channels a step, copies of some bytes."""
    sizes = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "COPY": copy}
    return Config(sizes, warps, stages, capability)


_TILES: dict[str, Callable[[int], list[Config]]] = {  # by the channels of 128 bytes
    "one": lambda k: [
        tile(128, 128, k, 8, 3),
        tile(256, 128, k, 8, 3),
        tile(256, 128, k, 8, 3, copy=16),
        tile(128, 64, k, 4, 3),
        tile(64, 32, k, 4, 4),
        tile(64, 32, 2 * k, 4, 3, copy=16),
        tile(64, 32, 4 * k, 4, 2, copy=16),
    ],
    "sum": lambda k: [
        tile(128, 128, k, 8, 3),
        tile(128, 128, k, 8, 3, copy=16),
        tile(128, 64, k, 8, 3),
        tile(64, 32, k, 4, 3, capability=90),
        tile(64, 32, 2 * k, 4, 2, copy=16, capability=90),
    ],
    "both": lambda k: [
        tile(128, 64, k, 8, 3),
        tile(128, 128, k, 8, 2, capability=90),
        tile(128, 128, k, 8, 2, copy=16, capability=90),
        tile(64, 32, k, 4, 3),
        tile(64, 32, 2 * k, 4, 2, copy=16, capability=90),
    ],
}


def fitted(configs: Iterable[Config], c_in: int, c_out: int) -> list[Config]:
    """The configurations with no tile much larger than the channels, each once."""
    smaller = (
        replace(
            config,
            sizes={
                **config.sizes,
                "BLOCK_N": min(config.sizes["BLOCK_N"], _power(c_out)),
                "BLOCK_K": min(config.sizes["BLOCK_K"], _power(c_in)),
            },
        )
        for config in configs
    )
    return list({str(config): config for config in smaller}.values())


def _power(channels: int) -> int:
    return max(16, triton.next_power_of_2(channels))
