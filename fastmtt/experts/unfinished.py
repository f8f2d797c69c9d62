"""Experts whose training was cut short: their snapshots so far, to go on from.

A file beside the finished experts, `expert_00003.unfinished.safetensors`, holds `rows`
[epochs + 1, P] and, with momentum, `velocity` [P]; the expert's own file takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.experts.store import TrajectoryStore, first_difference
from fastmtt.files import read_safetensors, write_safetensors

KIND = "fastmtt unfinished trajectory 1"


class Unfinished(NamedTuple):
    """One expert so far.

    Attributes:
        snapshots: weights [P] float32 after each epoch, the initialisation first.
        velocity: SGD's momentum [P], or None where there is none.
    """

    snapshots: list[Tensor]
    velocity: Tensor | None

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return len(self.snapshots) - 1


def save(store: TrajectoryStore, expert: int, state: Unfinished, meta: Mapping[str, Any]) -> None:
    """Write an expert's state atomically."""
    tensors = {"rows": torch.stack(state.snapshots)}
    if state.velocity is not None:
        tensors["velocity"] = state.velocity
    write_safetensors(_path(store, expert), KIND, tensors, {**store.wanted, **meta})


def load(store: TrajectoryStore, expert: int, size: int) -> Unfinished | None:
    """Give what was saved of an expert with ``size`` weights; None: nothing was.

    Raises:
        FastmttError: the file is damaged, or of another kind of expert than the store's.
    """
    path = _path(store, expert)
    if not path.exists():
        return None
    tensors, metadata = read_safetensors(path, KIND)
    complaint = first_difference("", metadata, store.wanted) or _misshapen(tensors, size)
    if complaint:
        raise FastmttError(
            f"{path} is an expert half-trained otherwise: {complaint}; remove it or choose another "
            "buffer_path"
        )
    return Unfinished(list(tensors["rows"]), tensors.get("velocity"))


def discard(store: TrajectoryStore, expert: int) -> None:
    """Remove what was saved of an expert, if anything was."""
    _path(store, expert).unlink(missing_ok=True)


def _path(store: TrajectoryStore, expert: int) -> Path:
    return store.path(expert).with_suffix(".unfinished.safetensors")


def _misshapen(tensors: Mapping[str, Tensor], size: int) -> str:
    rows, velocity = tensors.get("rows"), tensors.get("velocity", torch.empty(size))
    for tensor, shape in ((rows, [size]), (velocity, [])):
        if tensor is None or tensor.dtype != torch.float32 or list(tensor.shape[1:]) != shape:
            return f"it holds {sorted(tensors)}, wanted float32 rows [epochs + 1, {size}]"
    return "" if len(velocity) == size else f"its velocity has {len(velocity)} weights, not {size}"
