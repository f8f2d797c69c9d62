"""SGD with momentum on flat vectors [S,P]: weights and velocity in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from fastmtt.kernels.flat import Into, dense, expect, place, rates_of, types
from fastmtt.kernels.tuning import Config
from torch import Tensor

_ELEMENTS = Config({"CHUNK": 1024})


def sgd_momentum(
    theta: Tensor,
    g: Tensor,
    velocity: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    *,
    into: Into = None,
) -> tuple[Tensor, Tensor]:
    """The new theta and velocity; the rate, a scalar or [S], must not lie in either."""
    wanted = {"g": (g, theta.shape), "velocity": (velocity, theta.shape)}
    expect("sgd_momentum", wanted, theta)
    results = [place("sgd_momentum", into, i, theta.shape, theta) for i in (0, 1)]
    rates, theta, g, velocity = (
        rates_of("sgd_momentum", lr, theta),
        dense(theta),
        dense(g),
        dense(velocity),
    )
    if theta.numel() > 0:
        _sgd_momentum[(triton.cdiv(theta.shape[1], _ELEMENTS.sizes["CHUNK"]), len(theta))](
            theta,
            g,
            velocity,
            rates,
            *results,
            momentum,
            weight_decay,
            theta.shape[1],
            theta.stride(0),
            g.stride(0),
            velocity.stride(0),
            rates.stride(0),
            *(result.stride(0) for result in results),
            **_ELEMENTS.launch,
        )
    return results[0], results[1]


@triton.jit
def _sgd_momentum(
    theta,
    g,
    velocity,
    rates,
    new_theta,
    new_velocity,
    momentum,
    weight_decay,
    length,
    theta_row,
    g_row,
    velocity_row,
    rates_row,
    new_theta_row,
    new_velocity_row,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    inside = column < length
    start = tl.load(theta + row * theta_row + column, inside)
    slope = tl.load(g + row * g_row + column, inside) + weight_decay * start
    moving = momentum * tl.load(velocity + row * velocity_row + column, inside) + slope
    there = start - tl.load(rates + row * rates_row) * moving
    tl.store(new_theta + row * new_theta_row + column, there, inside)
    tl.store(new_velocity + row * new_velocity_row + column, moving, inside)


def specimens() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], Config]]:
    """The kernel: (name, kernel, types, constants, configuration)."""
    vectors = "theta g velocity rates new_theta new_velocity"
    rows = "theta_row g_row velocity_row rates_row new_theta_row new_velocity_row"
    floats = {"momentum": "fp32", "weight_decay": "fp32"}
    yield "sgd_momentum", _sgd_momentum, types(vectors, f"length {rows}") | floats, {}, _ELEMENTS
