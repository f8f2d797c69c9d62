"""A run's folder, read: configuration, metrics, sets, pictures, what it ran on."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt.config import parse
from fastmtt.data import Space, Whitened, load_space
from fastmtt.errors import FastmttError
from fastmtt.files import one_line
from fastmtt.options import DistillConfig
from fastmtt.reporting.metrics import Metrics, number, read_metrics
from fastmtt.synthetic import Synthetic, load_synthetic

# Title, and what it was chosen by: the page names each set for what it is.
CHOICES = {
    "best": ("Best by test accuracy", "selected on test data, as the published programs do"),
    "held_out": ("Best by held-out accuracy", "selected on held-out training images"),
    "last": ("Last iterate", "not selected"),
}
LINES = {"": "Learned images", "ema_": "Averaged images"}
_PICTURE = re.compile(r"images_(\d{6,})\.png")
_LOG_LINES = 200


@dataclass(frozen=True)
class ChosenSet:
    """A distilled set that a run saved.

    Attributes:
        line: Of `LINES`: the images as they are learned, or FTD's average of them.
        keys: Of `CHOICES`; several where the same set was chosen more than once.
        pixels: [n,C,H,W] float32 brought back by the run's space, or None without one.
        whitened: The images as trained, where the space is ZCA's or not there; else None.
        labels: [n] int64, of soft labels the most likely class.
        lr: The learned learning rate.
    """

    line: str
    keys: tuple[str, ...]
    pixels: Tensor | None
    whitened: Tensor | None
    labels: Tensor
    lr: float


@dataclass(frozen=True)
class Summary:
    """What a finished run says of itself: seconds of each part, and its peak memory."""

    seconds: dict[str, float]
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it; what an unfinished run has not written is empty or None.

    Attributes:
        path: The folder.
        config: What was asked for.
        metrics: Losses and accuracies.
        sets: The distilled sets, equal ones once.
        pictures: (iteration, file) of the pictures kept at evaluations.
        classes: The classes' names, where the sets carry them.
        environment: environment.json.
        experts: experts.json.
        summary: summary.json.
        log: The last lines of log.txt.
    """

    path: Path
    config: DistillConfig
    metrics: Metrics
    sets: list[ChosenSet]
    pictures: list[tuple[int, Path]]
    classes: list[str]
    environment: dict[str, Any]
    experts: dict[str, Any] | None
    summary: Summary | None
    log: list[str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def done(self) -> int:
        """Iterations that were done."""
        return self.metrics.steps[-1].iteration + 1 if self.metrics.steps else 0

    @property
    def finished(self) -> bool:
        """Whether the last iterate has been evaluated."""
        evaluations = self.metrics.evaluations
        return bool(evaluations) and evaluations[-1].iteration > self.config.Iteration

    def title(self, line: str, choice: str) -> str:
        """A choice's title, with the line it is of where the run has two."""
        if self.config.ema_decay is None:
            return choice
        return f"{LINES[line]}: {choice[0].lower()}{choice[1:]}"

    def class_name(self, label: int) -> str:
        """A class's name, or its number where the run does not say."""
        return self.classes[label] if label < len(self.classes) else f"class {label}"


def read_run(folder: Path) -> Run:
    """Read a run's folder.

    Raises:
        FastmttError: It is no run, or a file in it is damaged.
    """
    if not (folder / "config.yaml").is_file():
        raise FastmttError(
            f"{folder} is no run: wanted a folder that fastmtt.distill wrote (config.yaml in it)"
        )
    sets, classes = _read_sets(folder)
    return Run(
        path=folder,
        config=parse("distill", ["--cfg", str(folder / "config.yaml")]),
        metrics=read_metrics(folder / "metrics.jsonl"),
        sets=sets,
        pictures=_pictures(folder),
        classes=classes,
        environment=_read_json(folder / "environment.json") or {},
        experts=_read_json(folder / "experts.json"),
        summary=_read_summary(folder / "summary.json"),
        log=_read_log(folder / "log.txt"),
    )


def _read_sets(folder: Path) -> tuple[list[ChosenSet], list[str]]:
    files = {
        (line, key): folder / f"distilled_{line}{key}.safetensors"
        for line in LINES
        for key in CHOICES
    }
    files = {name: file for name, file in files.items() if file.exists()}
    if not files:
        return [], []
    space_file = folder / "space.safetensors"
    space = load_space(space_file) if space_file.exists() else None
    groups: list[tuple[str, list[str], Synthetic, Tensor]] = []
    classes: list[str] = []
    for (line, key), file in files.items():
        synthetic, meta = load_synthetic(file)
        classes = _class_names(meta) or classes
        for one, keys, other, _ in groups:
            if one == line and torch.equal(other.images, synthetic.images):
                keys.append(key)
                break
        else:
            labels = synthetic.labels if synthetic.labels.dim() == 1 else synthetic.labels.argmax(1)
            groups.append((line, [key], synthetic, labels))
    return [
        ChosenSet(line, tuple(keys), *_views(space, one, folder), labels, float(one.lr))
        for line, keys, one, labels in groups
    ], classes


def _views(
    space: Space | None, synthetic: Synthetic, folder: Path
) -> tuple[Tensor | None, Tensor | None]:
    images = synthetic.images
    if space is None:
        return None, images
    try:
        pixels = synthetic.to_pixels(space)
        if pixels.shape != images.shape:
            raise RuntimeError(f"it has {pixels.shape[1]} channels")
    except RuntimeError as error:
        raise FastmttError(
            f"{folder / 'space.safetensors'} does not fit the distilled images "
            f"{list(images.shape[1:])} ({one_line(error)}); put back the file of this run"
        ) from None
    return pixels, images if isinstance(space, Whitened) else None


def _class_names(meta: dict[str, Any]) -> list[str]:
    names = meta.get("classes")
    return [str(name) for name in names] if isinstance(names, list) else []


def _pictures(folder: Path) -> list[tuple[int, Path]]:
    found = ((_PICTURE.fullmatch(path.name), path) for path in folder.glob("images_*.png"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        # NaN, which JSON does not know but Python would read, stands for no value.
        content = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (ValueError, RecursionError) as error:
        raise FastmttError(
            f"{path} is damaged ({one_line(error)}); put it back whole, or remove it to report "
            "without it"
        ) from None
    return content


def _read_summary(path: Path) -> Summary | None:
    content = _read_json(path)
    if content is None:
        return None
    try:
        seconds = content.get("seconds") or {}
        known = {str(part): number(value) for part, value in seconds.items()}
        return Summary(
            {part: value for part, value in known.items() if value is not None},
            number(content.get("peak_memory_mb")),
        )
    except (AttributeError, ValueError) as error:
        raise FastmttError(
            f"{path} is damaged ({one_line(error)}); put it back whole, or remove it to report "
            "without it"
        ) from None


def _read_log(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
