"""Expert trajectories on disk: one safetensors file an expert, read two rows at a time.

A file holds one tensor `trajectory` [snapshots, P] float32, P in `named_parameters()` order, and
JSON metadata that says what it is. The published programs store pickled lists of ten experts
(methods of the field: `replay_buffer_0.pt`) and read all of them for the two rows a step needs.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.files import open_safetensors, write_safetensors

KIND = "fastmtt trajectory 1"
_REQUIRED = ("names", "shapes", "network", "dataset", "space", "recipe", "versions")
_FILE = re.compile(r"expert_(\d{5,})\.safetensors")


def store_path(
    buffer_path: str | Path, dataset: str, model: str, zca: bool, sparse_ratio: float = 0.0
) -> Path:
    """Give the field's folder of a data set's and network's experts.

    `{buffer_path}/{dataset}/{model}`, with `_NO_ZCA` after CIFAR10 and CIFAR100 without ZCA, as in
    the MTT program (Cazenavette et al. 2022); pruned ones with PDD's
    `_random_pruning_{sparse_ratio}`.
    """
    suffix = "_NO_ZCA" if dataset in ("CIFAR10", "CIFAR100") and not zca else ""
    suffix += f"_random_pruning_{sparse_ratio}" if sparse_ratio else ""
    return Path(buffer_path) / f"{dataset}{suffix}" / model


class TrajectoryStore:
    """The experts in one folder.

    Args:
        root: The folder; created by the first write.
        meta: What every file must say of itself (any of `names`, `shapes`, `network`, `dataset`,
            `space`, `recipe`, `versions`); a file that says otherwise is refused. None: any.
    """

    def __init__(self, root: str | Path, meta: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.wanted = _as_json(meta or {})

    def path(self, index: int) -> Path:
        """Give the file of expert `index`."""
        return self.root / f"expert_{index:05d}.safetensors"

    def write(self, index: int, trajectory: Tensor, meta: Mapping[str, Any] | None = None) -> Path:
        """Write one expert atomically.

        Args:
            index: The expert's number.
            trajectory: [snapshots, P] float32 on any device, the initial weights first.
            meta: Added to the store's own; together they must hold `names`, `shapes`, `network`,
                `dataset`, `space`, `recipe` and `versions`.

        Returns:
            The file's path.

        Raises:
            FastmttError: The weights are not finite: this expert diverged.
            ValueError: The trajectory or the metadata has the wrong form.
        """
        merged = {**self.wanted, **_as_json(meta or {})}
        complaint = (
            _first_missing(merged)
            or first_difference("", merged, self.wanted)
            or _wrong_form(trajectory.dtype, trajectory.shape, merged)
        )
        if complaint:
            raise ValueError(f"expert {index}: {complaint}")
        rows = trajectory.detach().cpu()
        _check_finite(index, rows)
        write_safetensors(self.path(index), KIND, {"trajectory": rows}, merged)
        return self.path(index)

    def indices(self) -> list[int]:
        """Give the numbers of the experts that are there, sorted; the files are not opened."""
        if not self.root.is_dir():
            return []
        matches = (_FILE.fullmatch(path.name) for path in self.root.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def missing(self, count: int, epochs: int = 1) -> list[int]:
        """Give the numbers below `count` that are still to be trained.

        The headers of those that are there are checked, so that a foreign file is refused before
        hours of training rather than after.

        Raises:
            FastmttError: One of the files is damaged, foreign, of another kind of expert, or of
                fewer than `epochs` epochs.
        """
        there = {index for index in self.indices() if index < count}
        for index in sorted(there):
            if (length := self.length(index)) <= epochs:
                raise FastmttError(
                    f"{self.path(index)} was trained for {length - 1} epochs, wanted at least "
                    f"{epochs}; remove it or choose another buffer_path"
                )
        return [index for index in range(count) if index not in there]

    def length(self, index: int) -> int:
        """Give the number of snapshots of expert `index` (its epochs + 1)."""
        with self._open(index) as (rows, _):
            return int(rows.get_shape()[0])

    def meta(self, index: int) -> dict[str, Any]:
        """Give the metadata of expert `index` as JSON values."""
        with self._open(index) as (_, metadata):
            return metadata

    def segment(self, index: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Read the snapshots `start` and `stop` of expert `index`: two [P] float32 rows, no more.

        Raises:
            FastmttError: No such expert or snapshot, the file is refused, or the rows hold nothing
                to match.
        """
        with self._open(index) as (rows, _):
            snapshots = int(rows.get_shape()[0])
            if not (0 <= start < snapshots and 0 <= stop < snapshots):
                raise FastmttError(
                    f"{self.path(index)} has snapshots 0 to {snapshots - 1}, wanted {start} and "
                    f"{stop}; train the experts for more epochs or lower max_start_epoch"
                )
            # Cloned: the slices lie on the mapped file and would keep all of it alive.
            first, last = rows[start].clone(), rows[stop].clone()
        check_segment(f"expert {index} in {self.path(index)}", start, stop, first, last)
        return first, last

    @contextmanager
    def _open(self, index: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Open an expert's file, check its form and what it says of itself, read no row."""
        path = self.path(index)
        with open_safetensors(path, KIND) as (handle, metadata):
            complaint = _first_missing(metadata)
            if not complaint:
                complaint = first_difference("", metadata, self.wanted)
            if not complaint and list(handle.keys()) != ["trajectory"]:
                complaint = f"it holds {list(handle.keys())}, wanted one tensor 'trajectory'"
            if not complaint:
                rows = handle.get_slice("trajectory")
                dtype = torch.float32 if rows.get_dtype() == "F32" else rows.get_dtype()
                complaint = _wrong_form(dtype, rows.get_shape(), metadata)
            if complaint:
                raise FastmttError(
                    f"{path} is refused: {complaint}; remove it or choose another buffer_path"
                )
            metadata.pop("format")
            yield rows, metadata


def _as_json(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Bring metadata into the form it has after a round trip (tuples become lists)."""
    copy: dict[str, Any] = json.loads(json.dumps(dict(meta), allow_nan=False))
    return copy


def _first_missing(metadata: Mapping[str, Any]) -> str:
    return next((f"it says nothing of its {key}" for key in _REQUIRED if key not in metadata), "")


def first_difference(where: str, got: Any, wanted: Any) -> str:
    """Say where `got` first departs from `wanted`; at the top, unnamed keys are free."""
    if isinstance(got, dict) and isinstance(wanted, dict):
        keys = wanted if not where else {**wanted, **got}
        for key in keys:
            name = f"{where}.{key}" if where else str(key)
            if key not in wanted:
                return f"its {name} is {_short(got[key])}, wanted none"
            if key not in got:
                return f"its {name} is absent, wanted {_short(wanted[key])}"
            difference = first_difference(name, got[key], wanted[key])
            if difference:
                return difference
        return ""
    if isinstance(got, list) and isinstance(wanted, list) and got != wanted:
        if len(got) != len(wanted):
            return f"its {where} has {len(got)} entries, wanted {len(wanted)}"
        place = next(i for i in range(len(got)) if got[i] != wanted[i])
        return f"its {where}[{place}] is {_short(got[place])}, wanted {_short(wanted[place])}"
    if got != wanted:
        return f"its {where} is {_short(got)}, wanted {_short(wanted)}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong_form(dtype: Any, shape: Any, metadata: Mapping[str, Any]) -> str:
    shape = list(shape)
    names, shapes = metadata["names"], metadata["shapes"]
    if dtype != torch.float32 or len(shape) != 2 or shape[0] < 2:
        return f"its trajectory is {dtype} {shape}, wanted float32 [2 or more snapshots, P]"
    if not _well_formed(names, shapes):
        return "its names and shapes do not describe parameters"
    size = sum(math.prod(entry) for entry in shapes)
    if shape[1] != size:
        return f"its rows have {shape[1]} weights, its shapes say {size}"
    return ""


def _well_formed(names: Any, shapes: Any) -> bool:
    return (
        isinstance(names, list)
        and isinstance(shapes, list)
        and len(names) == len(shapes)
        and all(isinstance(name, str) for name in names)
        and all(isinstance(s, list) and all(type(n) is int and n >= 0 for n in s) for s in shapes)
    )


def check_segment(expert: str, start: int, stop: int, first: Tensor, last: Tensor) -> None:
    """Refuse two rows of an expert between which there is nothing to match.

    Raises:
        FastmttError: Weights are not finite, or the rows are equal.
    """
    if not (first.isfinite().all() and last.isfinite().all()):
        complaint = "diverged: its weights are not finite"
    elif start != stop and torch.equal(first, last):
        complaint = f"has equal weights in snapshots {start} and {stop}: there is nothing to match"
    else:
        return
    raise FastmttError(f"{expert} {complaint}; leave it out, or choose another buffer_path")


def _check_finite(index: int, rows: Tensor) -> None:
    for snapshot, row in enumerate(rows):
        if not bool(torch.isfinite(row).all()):
            raise FastmttError(
                f"expert {index} diverged: its weights at snapshot {snapshot} are not finite; "
                "lower its learning rate (lr_teacher, in distill expert_lr) or rho_max"
            )
