"""The opponent in JAX: the unroll as a compiled scan, each step recomputed on the way back."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from bench import naive
from bench.gpu.device import DEVICE
from bench.naive import Gradients
from bench.problem import CHANNELS, CLASSES, DEPTH, IMAGE, Problem


def contender(problem: Problem) -> Callable[[], Gradients]:
    """One matching step by JAX; its inputs lie on its device, a call waits for the results."""
    jax: Any = importlib.import_module("jax")
    jnp: Any = importlib.import_module("jax.numpy")
    size = problem.size
    net = naive.ConvNet(CHANNELS, IMAGE, CLASSES, DEPTH, size.width)
    shapes = [tuple(p.shape) for p in net.parameters()]
    low = jnp.bfloat16 if size.precision == "bf16" else None
    highest = "highest" if size.precision == "fp32" else "default"  # on a GPU tf32

    def convolution(x: Any, w: Any) -> Any:
        x, w = (x, w) if low is None else (x.astype(low), w.astype(low))
        layout = ("NHWC", "OIHW", "NHWC")
        z = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=layout, precision=highest
        )
        return z.astype(jnp.float32)

    def logits(theta: Any, x: Any) -> Any:
        ends = [sum(map(prod, shapes[: i + 1])) for i in range(len(shapes) - 1)]
        pieces = jnp.split(theta, ends)
        weights = [p.reshape(s) for p, s in zip(pieces, shapes, strict=True)]
        x = x.transpose(0, 2, 3, 1)
        for i in range(DEPTH):
            w, bias, gamma, beta = weights[4 * i : 4 * i + 4]
            z = convolution(x, w) + bias
            z = z - z.mean((1, 2), keepdims=True)
            z = z / jnp.sqrt(jnp.square(z).mean((1, 2), keepdims=True) + 1e-5)
            z = jnp.maximum(z * gamma + beta, 0)
            batch, height, width, channels = z.shape
            x = z.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        w, bias = weights[-2:]
        return x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ w.T + bias

    def loss(theta: Any, x: Any, y: Any) -> Any:
        log_p = jax.nn.log_softmax(logits(theta, x))
        return -jnp.take_along_axis(log_p, y[:, None], 1).mean()

    def distance(images: Any, lr: Any, start: Any, target: Any, labels: Any, rows: Any) -> Any:
        @jax.checkpoint
        def step(theta: Any, picked: Any) -> Any:
            return theta - lr * jax.grad(loss)(theta, images[picked], labels[picked]), None

        end, _ = jax.lax.scan(step, start, rows)
        return jnp.square(end - target).sum() / jnp.square(start - target).sum()

    run = jax.jit(jax.value_and_grad(distance, argnums=(0, 1)))
    p = problem
    rows = torch.stack(list(p.indices))
    inputs = [
        jax.device_put(t.cpu().numpy())
        for t in (p.images, p.lr, p.start, p.target, p.labels.int(), rows.int())
    ]

    def match() -> Gradients:
        value, (g_images, g_lr) = jax.block_until_ready(run(*inputs))
        return Gradients(*(_torch(t) for t in (value, g_images, g_lr)))

    return match


def peak_mb() -> float | None:
    """Megabytes of its device that JAX took at most, where it says."""
    jax: Any = importlib.import_module("jax")
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e6 if stats else None


def _torch(array: Any) -> Tensor:
    return torch.tensor(importlib.import_module("numpy").asarray(array), device=DEVICE)
