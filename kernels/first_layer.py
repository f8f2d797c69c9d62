"""A network's first block and its tangent: every pixel by itself, as statistics come from patches.

With the covariance of :mod:`fastmtt.kernels.patches` the norm of a plane is known before any of it
is computed, and goes into the weights: ``xhat = patch . (r w)`` and, of an input that stands still,
``xhat_dot = patch . (r w_dot + r_dot w)``, of patches less their mean. What is left is bound by the
results' way to memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.contraction import FEW
from fastmtt.kernels.norm import EPS
from fastmtt.kernels.patches import nearly_exact, patch_statistics, patches_at, rows_of, weights_of
from fastmtt.kernels.precision import multiply, rounded
from fastmtt.kernels.tuning import Config
from torch import Tensor


@triton.jit(do_not_specialize=["images"])
def _first_layer(
    a,
    mean,
    covariance,
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
    CIN: tl.constexpr,
    CHANNELS: tl.constexpr,
    GIVEN: tl.constexpr,
    TANGENT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns WINDOWS pooling windows of an image; it reads xhat and rstd if GIVEN."""
    across: tl.constexpr = (WIDTH + 1) // 2
    parts: tl.constexpr = (across * ((HEIGHT + 1) // 2) + WINDOWS - 1) // WINDOWS
    tiles: tl.constexpr = (CHANNELS + COLUMNS - 1) // COLUMNS
    AREA: tl.constexpr = HEIGHT * WIDTH
    image = (tl.program_id(0) // (parts * tiles)).to(tl.int64)
    part = tl.program_id(0) // tiles % parts
    student = image // images
    c = tl.program_id(0) % tiles * COLUMNS + tl.arange(0, COLUMNS)
    exists = c < CHANNELS
    row = tl.arange(0, ROWS)

    centre = tl.load(mean + image * ROWS + row)
    weights = weights_of(w + student * w_stride, row, c[None, :], CIN, CHANNELS)
    spread = tl.load(covariance + image * (ROWS * ROWS) + row[:, None] * ROWS + row[None, :])
    spread_of = nearly_exact(spread, weights, PRECISION)
    if GIVEN:
        r = tl.load(rstd + image * CHANNELS + c, mask=exists, other=0.0)
    else:
        r = 1.0 / tl.sqrt(tl.maximum(tl.sum(weights * spread_of, 0), 0.0) + EPS)  # rounded below 0
        if part == 0:
            tl.store(rstd + image * CHANNELS + c, r, mask=exists)
    g = tl.load(gamma + student * gamma_stride + c, mask=exists)[None, :]
    b = tl.load(beta + student * beta_stride + c, mask=exists)[None, :]
    if TANGENT:
        weights_dot = weights_of(w_dot + student * w_dot_stride, row, c[None, :], CIN, CHANNELS)
        r_dot = -r * r * r * tl.sum(weights_dot * spread_of, 0)
        if part == 0:
            tl.store(rstd_dot + image * CHANNELS + c, r_dot, mask=exists)
        inner_dot = rounded(r[None, :] * weights_dot + r_dot[None, :] * weights, PRECISION)
        g_dot = tl.load(gamma_dot + student * gamma_dot_stride + c, mask=exists)[None, :]
        b_dot = tl.load(beta_dot + student * beta_dot_stride + c, mask=exists)[None, :]
        xhat_dot += image * (AREA * CHANNELS)
        p_dot += image * ((HEIGHT // 2) * (WIDTH // 2) * CHANNELS)
    inner = rounded(r[None, :] * weights, PRECISION)
    a += image * (AREA * CIN)
    xhat += image * (AREA * CHANNELS)
    p += image * ((HEIGHT // 2) * (WIDTH // 2) * CHANNELS)

    window = part * WINDOWS + tl.arange(0, WINDOWS)
    total = tl.zeros((WINDOWS, COLUMNS), tl.float32)
    total_dot = tl.zeros((WINDOWS, COLUMNS), tl.float32)
    nothing = tl.zeros((WINDOWS, COLUMNS), tl.float32)
    for corner in range(4):
        y, x = window // across * 2 + corner // 2, window % across * 2 + corner % 2
        present = (y < HEIGHT) & (x < WIDTH)
        found = patches_at(a, y, x, present, centre, HEIGHT, WIDTH, CIN, ROWS)
        found = rounded(found, PRECISION)
        place = (y * WIDTH + x)[:, None] * CHANNELS + c[None, :]
        mask = present[:, None] & exists[None, :]
        if GIVEN:
            value = tl.load(xhat + place, mask=mask, other=0.0)
        else:
            value = multiply(found, inner, nothing, PRECISION)
            tl.store(xhat + place, value, mask=mask)
        n = value * g + b
        total += tl.maximum(n, 0.0)
        if TANGENT:
            value_dot = multiply(found, inner_dot, nothing, PRECISION)
            tl.store(xhat_dot + place, value_dot, mask=mask)
            total_dot += tl.where(n > 0.0, value * g_dot + b_dot + value_dot * g, 0.0)
    down, right = window // across, window % across
    pooled = (down * (WIDTH // 2) + right)[:, None] * CHANNELS + c[None, :]
    whole = ((down < HEIGHT // 2) & (right < WIDTH // 2))[:, None] & exists[None, :]
    tl.store(p + pooled, total * 0.25, mask=whole)
    if TANGENT:
        tl.store(p_dot + pooled, total_dot * 0.25, mask=whole)


def plans(a: Tensor, channels: int, precision: str) -> list[Config]:
    """The configurations that can serve a block whose input ``a`` has no tangent.

    Args:
        a: [S,B,H,W,Cin].
        channels: of the output.
        precision: of :mod:`fastmtt.kernels.precision`. In float32 a variance from a covariance
            loses digits where a filter sees next to nothing of bright images.
    """
    return configs(channels) if a.shape[-1] <= FEW and precision == "tf32" else []


def serves(config: Config) -> bool:
    """Whether a configuration is one of :func:`plans`."""
    return "WINDOWS" in config.sizes


def conv_block(
    config: Config,
    a: Tensor,
    primal: Sequence[Tensor],
    results: Sequence[Tensor],
    precision: str,
    tangent: Sequence[Tensor] | None = None,
    results_dot: Sequence[Tensor] | None = None,
    *,
    given: bool = False,
) -> None:
    """Write a block of at most :data:`contraction.FEW` input channels, and its tangent.

    Args:
        config: one of :func:`plans`.
        a: float32 [S,B,H,W,Cin], contiguous, without a tangent.
        primal: (w, gamma, beta), contiguous for each student.
        results: where (p, xhat, rstd) go.
        precision: of :mod:`fastmtt.kernels.precision`.
        tangent: those of ``primal``.
        results_dot: where (p_dot, xhat_dot, rstd_dot) go.
        given: whether xhat and rstd are there already.
    """
    students, images, height, width, c_in = a.shape
    channels = primal[0].shape[-1]
    dots = tuple(tangent or primal)
    p, xhat, rstd = results
    p_dot, xhat_dot, rstd_dot = results_dot or results
    parameters = [t for pair in zip(primal, dots, strict=True) for t in pair]
    windows = triton.cdiv(height, 2) * triton.cdiv(width, 2)
    parts = triton.cdiv(windows, config.sizes["WINDOWS"])
    tiles = triton.cdiv(channels, config.sizes["COLUMNS"])
    _first_layer[(students * images * parts * tiles,)](
        a,
        *patch_statistics(a, precision),
        *parameters,
        p,
        p_dot,
        xhat,
        rstd,
        xhat_dot,
        rstd_dot,
        images,
        *(t.stride(0) for t in parameters),
        HEIGHT=height,
        WIDTH=width,
        CIN=c_in,
        CHANNELS=channels,
        GIVEN=given,
        TANGENT=tangent is not None,
        PRECISION=precision,
        ROWS=rows_of(c_in),
        **config.launch,
    )


def configs(channels: int) -> list[Config]:
    """Windows and channels a program works on at once."""
    most = max(16, triton.next_power_of_2(channels))
    found: dict[str, Config] = {}
    for windows, columns, warps in ((64, 64, 4), (64, 128, 8), (32, 128, 8), (64, 32, 4)):
        config = Config({"WINDOWS": windows, "COLUMNS": min(columns, most)}, warps, 1)
        found.setdefault(str(config), config)
    return list(found.values())


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """What the standard ConvNet launches: name, kernel, signature, constants, configuration."""
    sizes = {"HEIGHT": 32, "WIDTH": 32, "CIN": 3, "CHANNELS": 128, "ROWS": rows_of(3)}
    names = _first_layer.arg_names
    signature = {n: "i32" if n.endswith("stride") or n == "images" else "*fp32" for n in names}
    for tangent, given in ((False, False), (True, False), (True, True)):
        constants: dict[str, Any] = sizes | {"TANGENT": tangent, "GIVEN": given}
        constants["PRECISION"] = "tf32"
        for config in configs(128):
            name = f"first_layer {'tangent' if tangent else 'primal'}{' given' * given} tf32"
            yield name, _first_layer, signature, constants, config
