"""Expert trajectories of the published programs: `replay_buffer_{n}.pt`, read where they lie.

A file holds experts, an expert its snapshots, a snapshot one float32 tensor a parameter, in
`named_parameters()` order: what the programs of MTT, FTD, TESLA, DATM, PAD and PDD save. The files
are mapped, so two rows of a trajectory cost two rows, not the 0.65 GB they lie in. What they do not
say, nobody can check: network, data set and whitening beyond the parameters' shapes.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.experts.store import TrajectoryStore, check_segment
from fastmtt.files import one_line, replacing
from fastmtt.pickles import read_pickle
from fastmtt.progress import progress, say

UNKNOWN = {"unknown": "replay_buffer files do not say how their experts were trained"}
_WANTED = "a list of experts, each a list of snapshots, each a list of float32 tensors"
_FILE = re.compile(r"replay_buffer_\d+\.pt")
_KEPT = 12  # files mapped at a time; the field has ten of ten experts
Trajectory = Sequence[Sequence[Tensor]]


@dataclass(frozen=True)
class _Place:
    """Where an expert lies: its file, its number in it, and how many snapshots it has."""

    path: Path
    number: int
    snapshots: int


class PublishedBuffer:
    """The experts in one folder of `replay_buffer_{n}.pt`, numbered through all files.

    It is read as a :class:`TrajectoryStore` is, and cannot be added to.

    Args:
        root: The folder; the files 0, 1, ... up to the first that is missing are read.
        meta: What is wanted, of which only `shapes` can be checked. None: any.
    """

    def __init__(self, root: str | Path, meta: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        shapes = (meta or {}).get("shapes")
        self._wanted = None if shapes is None else [list(shape) for shape in shapes]
        self._load = functools.lru_cache(_KEPT)(_read)

    def files(self) -> list[Path]:
        """Give the files that are there, in order.

        Raises:
            FastmttError: There are some, but number 0 is missing.
        """
        there = _names(self.root)
        names: list[str] = []
        while (name := f"replay_buffer_{len(names)}.pt") in there:
            names.append(name)
        if there and not names:
            raise FastmttError(
                f"{self.root} holds {min(there)} but no replay_buffer_0.pt; files are read from 0 "
                "up to the first that is missing: rename them"
            )
        return [self.root / name for name in names]

    def indices(self) -> list[int]:
        """Give the experts' numbers; the first call opens and checks every file.

        Raises:
            FastmttError: A file is refused.
        """
        return list(range(len(self._places)))

    def missing(self, count: int, epochs: int = 1) -> list[int]:
        """Make sure that `count` experts of `epochs` epochs are there; give the empty list.

        Raises:
            FastmttError: A file is refused, an expert is too short, or there are too few of them.
        """
        there = len(self._places)
        if count > there:
            raise FastmttError(
                f"{self.root} holds {there} experts of a published program, which cannot be added "
                f"to, wanted {count}; set num_experts to {there} or choose another buffer_path"
            )
        for index in range(count):
            if (length := self.length(index)) <= epochs:
                raise FastmttError(
                    f"expert {index} in {self.path(index)} was trained for {length - 1} epochs, "
                    f"wanted at least {epochs}; lower max_start_epoch or choose another buffer_path"
                )
        return []

    def length(self, index: int) -> int:
        """Give the number of snapshots of expert `index` (its epochs + 1)."""
        return self._place(index).snapshots

    def path(self, index: int) -> Path:
        """Give the file expert `index` lies in."""
        return self._place(index).path

    def meta(self, index: int) -> dict[str, Any]:
        """Give what is known of expert `index`: `shapes`, and that its `recipe` is unknown."""
        first = self._trajectory(index)[0]
        return {"shapes": [list(tensor.shape) for tensor in first], "recipe": dict(UNKNOWN)}

    def segment(self, index: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Read the snapshots `start` and `stop` of expert `index`: two [P] float32 rows, no more.

        Raises:
            FastmttError: No such expert or snapshot, the file is refused, or the rows hold nothing
                to match.
        """
        snapshots = self.length(index)
        if not (0 <= start < snapshots and 0 <= stop < snapshots):
            raise FastmttError(
                f"expert {index} in {self.path(index)} has snapshots 0 to {snapshots - 1}, wanted "
                f"{start} and {stop}; lower max_start_epoch"
            )
        trajectory = self._trajectory(index)
        first, last = (_flat(trajectory[snapshot]) for snapshot in (start, stop))
        check_segment(f"expert {index} in {self.path(index)}", start, stop, first, last)
        return first, last

    @functools.cached_property
    def _places(self) -> list[_Place]:
        """Open every file once and check what can be checked without reading all of it."""
        files = self.files()
        places: list[_Place] = []
        for path in progress(files, desc=f"{self.root}: opening replay buffers"):
            for number, trajectory in enumerate(self._load(path)):
                complaint = self._complaint(trajectory)
                if complaint:
                    raise FastmttError(
                        f"{path} is refused: of its expert {number}, {complaint}; remove it or "
                        "choose another buffer_path"
                    )
                places.append(_Place(path, number, len(trajectory)))
        _say_gap(self.root, len(files))
        return places

    def _complaint(self, trajectory: Trajectory) -> str:
        """Say what is wrong with a trajectory; empty if nothing is."""
        if self._wanted is None:
            self._wanted = [list(tensor.shape) for tensor in trajectory[0]]
        for snapshot, tensors in enumerate(trajectory):
            shapes = [list(tensor.shape) for tensor in tensors]
            if shapes != self._wanted:
                return f"snapshot {snapshot} has {_first_difference(shapes, self._wanted)}"
        pairs = zip(trajectory[0], trajectory[-1], strict=True)
        if all(torch.equal(first, last) for first, last in pairs):
            return (
                "the first and the last snapshot are equal, as the published programs save them "
                "when they run without a GPU, so there is nothing to match"
            )
        if not all(bool(tensor.isfinite().all()) for tensor in trajectory[-1]):
            return "the last snapshot's weights are not finite: it diverged"
        return ""

    def _place(self, index: int) -> _Place:
        if not 0 <= index < len(self._places):
            raise FastmttError(
                f"{self.root} holds {len(self._places)} experts, wanted number {index}"
            )
        return self._places[index]

    def _trajectory(self, index: int) -> Trajectory:
        place = self._place(index)
        return self._load(place.path)[place.number]


Experts = TrajectoryStore | PublishedBuffer


def open_experts(root: str | Path, meta: Mapping[str, Any] | None = None) -> Experts:
    """Open the experts in a folder, ours or a published program's, by what lies in it.

    A folder that is empty or not there yet gives a :class:`TrajectoryStore`, to be written to.
    `missing` of a :class:`PublishedBuffer` never names an expert to train: it is empty or refuses.

    Args:
        root: The folder.
        meta: What the experts must be; of a published program's only `shapes` can be checked.

    Raises:
        FastmttError: Both kinds lie there, or replay buffers without number 0.
    """
    ours, published = TrajectoryStore(root, meta), PublishedBuffer(root, meta)
    if not published.files():
        return ours
    if ours.indices():
        raise FastmttError(
            f"{root} holds both expert_*.safetensors and replay_buffer_*.pt, and nothing says "
            "which are meant; move one kind to another folder"
        )
    return published


def write_published(root: str | Path, number: int, trajectories: Iterable[Trajectory]) -> Path:
    """Write `replay_buffer_{number}.pt`, atomically, as the published programs read it.

    Args:
        root: The folder; created where it is missing.
        number: The file's.
        trajectories: A few experts' snapshots, each the float32 tensors of its parameters; views
            of one tensor are stored once.

    Returns:
        The file's path.

    Raises:
        FastmttError: It cannot be written, as on a full disk.
    """
    path = Path(root) / f"replay_buffer_{number}.pt"
    content = [[list(snapshot) for snapshot in trajectory] for trajectory in trajectories]
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch.save's word for a disk that is full
            raise FastmttError(
                f"{path} cannot be written ({one_line(error)}); make room, or choose another folder"
            ) from None
    return path


def unflatten(rows: Tensor, shapes: Sequence[Sequence[int]]) -> Trajectory:
    """Give rows [snapshots,P] as a published trajectory: views shaped as the parameters."""
    sizes = [math.prod(shape) for shape in shapes]
    return [
        [part.view(*shape) for part, shape in zip(row.split(sizes), shapes, strict=True)]
        for row in rows
    ]


def _read(path: Path) -> list[list[list[Tensor]]]:
    """Map one file and check its nesting."""
    content = read_pickle(path, _WANTED, mapped=True)
    sound = _is_list(content) and all(
        _is_list(trajectory)
        and len(trajectory) > 1
        and all(_is_list(snapshot) and all(map(_is_weight, snapshot)) for snapshot in trajectory)
        for trajectory in content
    )
    if not sound:
        raise FastmttError(
            f"{path} is no buffer of experts; wanted {_WANTED}, of 2 or more snapshots each; "
            "remove it or choose another buffer_path"
        )
    experts: list[list[list[Tensor]]] = content
    return experts


def _is_list(content: Any) -> bool:
    return isinstance(content, list | tuple) and len(content) > 0


def _is_weight(content: Any) -> bool:
    return isinstance(content, Tensor) and content.dtype == torch.float32


def _flat(snapshot: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in snapshot])


def _first_difference(got: list[list[int]], wanted: list[list[int]]) -> str:
    if len(got) != len(wanted):
        return f"{len(got)} parameters, wanted {len(wanted)}"
    place = next(i for i in range(len(got)) if got[i] != wanted[i])
    return f"a parameter {place} shaped {got[place]}, wanted {wanted[place]}"


def _names(root: Path) -> set[str]:
    if not root.is_dir():
        return set()
    return {path.name for path in root.iterdir() if _FILE.fullmatch(path.name)}


def _say_gap(root: Path, count: int) -> None:
    there = len(_names(root))
    if there > count:
        say(
            f"{root}: replay_buffer_{count}.pt is missing, so {there - count} files behind it are "
            "not read, as in the published programs"
        )
