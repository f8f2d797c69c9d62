"""Asking a module what its forward does, on weights and images of our own.

A module's own weights do not count: they are not used, and may hide what the forward does (a
classifier of zeros gives equal logits whatever happens to them).
"""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmtt.errors import NoStudentError

_chains: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = WeakKeyDictionary()
_draws: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = WeakKeyDictionary()


def is_chain(
    module: nn.Module, layers: Mapping[str, nn.Module], image_shape: tuple[int, ...]
) -> bool:
    """Whether the forward is ``layers``, flatten, the linear ``classifier``, nothing else."""
    key = (image_shape, module.training)
    known = _chains.setdefault(module, {})
    if key not in known:
        weights, x = _weights_and_images(module, image_shape)
        with torch.no_grad():
            try:
                logits = functional_call(module, weights, (x.clone(),))
            except Exception:  # the caller's forward: whatever it raises, it is no chain
                logits = None
            for name, layer in layers.items():
                x = functional_call(layer, _part(weights, f"{name}."), (x,))
            chain = F.linear(x.flatten(1), weights["classifier.weight"], weights["classifier.bias"])
        known[key] = isinstance(logits, Tensor) and torch.equal(logits, chain)
    return known[key]


def draws_numbers(module: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Whether two forwards on the same inputs differ, as with dropout.

    Raises:
        NoStudentError: the module cannot take such images.
    """
    key = (image_shape, module.training)
    known = _draws.setdefault(module, {})
    if key not in known:
        weights, x = _weights_and_images(module, image_shape)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                once, again = (functional_call(module, weights, (x.clone(),)) for _ in range(2))
            except Exception as error:
                raise NoStudentError(
                    f"the student cannot take a batch of shape {list(x.shape)}: {error}"
                ) from error
        known[key] = not torch.equal(once.nan_to_num(), again.nan_to_num())
    return known[key]


def _weights_and_images(
    module: nn.Module, image_shape: tuple[int, ...]
) -> tuple[dict[str, Tensor], Tensor]:
    """Random weights of the module's shapes and dtype, and two random images."""
    generator = torch.Generator().manual_seed(0)
    like = next(module.parameters())
    device = "cpu" if like.is_meta else like.device

    def normal(shape: torch.Size | tuple[int, ...], scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device, like.dtype)

    weights = {
        name: normal(p.shape, max(1, p.shape[1:].numel()) ** -0.5)
        for name, p in module.named_parameters()
    }
    return weights, normal((2, *image_shape), 1.0)


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
