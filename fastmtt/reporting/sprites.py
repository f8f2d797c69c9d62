"""Distilled images as few, small pictures: a sprite for each class, a frame for each iteration.

What a page may weigh is shared out in pixels: sets that fit are kept to the bit (PNG), larger ones
are compressed (WebP), and of the largest only the first images of each class are shown.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from fastmtt.errors import FastmttError
from fastmtt.files import one_line
from fastmtt.reporting.reader import ChosenSet, Run

_EXACT_PIXELS = 700_000  # a page of so many weighs about 3 MB as PNG
_MOST_PIXELS = 12_000_000  # and of so many about 8 MB as WebP
_QUALITY = 80
_CLIP = 2.5  # standard deviations, as in the pictures that distill writes
_BORDER = 2  # pixels between the images of those pictures, torchvision's
_PER_ROW = 10  # their images in a row
_SMALL, _ENLARGE = 64, 4  # images below so many pixels stand there so many times as large
_FRAME_CELLS = 100  # images in a frame of the history


@dataclass(frozen=True)
class Sprite:
    """Images in rows, as one picture.

    Attributes:
        source: A data URI.
        columns: Images in a row.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
    """

    source: str
    columns: int
    width: int
    height: int


@dataclass(frozen=True)
class ClassRow:
    """The shown images of one class; `count` is how many there are."""

    name: str
    sprite: Sprite
    shown: int
    count: int


@dataclass(frozen=True)
class Panel:
    """One set in one view: "pixels" or "whitened"."""

    set: ChosenSet
    view: str
    rows: list[ClassRow]


@dataclass(frozen=True)
class Frame:
    """The images before an iteration."""

    iteration: int
    sprite: Sprite


@dataclass(frozen=True)
class History:
    """How the images changed.

    Attributes:
        frames: In order of iterations.
        kept: Number of pictures in the run's folder; `frames` are evenly chosen of them.
        shown: Number of images in a frame.
        total: Number of images in the set.
    """

    frames: list[Frame]
    kept: int
    shown: int
    total: int


def panels(run: Run, *, runs: int = 1) -> list[Panel]:
    """Give every set of a run in every view, `runs` being the runs that share the page."""
    views = [
        (chosen, view, images)
        for chosen in run.sets
        for view, images in (("pixels", chosen.pixels), ("whitened", chosen.whitened))
        if images is not None
    ]
    area = sum(images[:, 0].numel() for _, _, images in views) * runs
    share = min(1.0, _MOST_PIXELS / max(area, 1))
    exact = area <= _EXACT_PIXELS
    return [
        Panel(chosen, view, _class_rows(run, for_the_eye(images), chosen.labels, share, exact))
        for chosen, view, images in views
    ]


def history(run: Run, *, runs: int = 1) -> History | None:
    """Give the pictures of the evaluations, smaller and fewer where they are many."""
    if not run.pictures or not run.sets:
        return None
    chosen = run.sets[0]
    images = chosen.pixels if chosen.pixels is not None else chosen.whitened
    assert images is not None  # a set has at least one view
    rows = _frame_rows(chosen.labels)
    pixels = len(rows) * images[0, 0].numel() * runs
    most = max(2, _MOST_PIXELS // pixels)
    pictures = _evenly(run.pictures, most)
    exact = len(pictures) * pixels <= _EXACT_PIXELS
    frames = [
        Frame(iteration, _sprite(read_cells(path, images.shape, rows), exact=exact))
        for iteration, path in pictures
    ]
    return History(frames, len(run.pictures), len(rows), len(images))


def for_the_eye(images: Tensor) -> Tensor:
    """Bring images [n,C,H,W] to [n,3,H,W] in [0,1] as the field shows them.

    Clipped to mean ± 2.5 standard deviations of all, then each from its darkest to its brightest.
    """
    if images.shape[1] != 3:
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    std, mean = torch.std_mean(images, correction=0)
    images = images.clamp(mean - _CLIP * std, mean + _CLIP * std)
    low = images.amin((1, 2, 3), keepdim=True)
    high = images.amax((1, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-5)


def read_cells(path: Path, shape: Sequence[int], rows: Tensor) -> Tensor:
    """Cut images out of a picture that `distill` wrote.

    Args:
        path: The PNG: ten images a row, small ones enlarged four times.
        shape: (n, C, H, W) of the set it shows.
        rows: int64 [k], the images wanted.

    Returns:
        [k,3,H,W] float32 in [0,1].

    Raises:
        FastmttError: It is no picture of so many images of that size.
    """
    count, _, height, width = shape
    times = _ENLARGE if width < _SMALL else 1
    high, wide = height * times + _BORDER, width * times + _BORDER
    per_row = min(count, _PER_ROW)
    size = (per_row * wide + _BORDER, -(-count // per_row) * high + _BORDER)
    if count == 1:
        size = (width * times, height * times)  # torchvision puts no border round a single one
    border = 0 if count == 1 else _BORDER
    cells = []
    try:
        with Image.open(path) as file:
            if file.size != size:
                raise ValueError(f"it is {file.size[0]}x{file.size[1]} pixels")
            for row in rows.tolist():
                top, left = row // per_row * high + border, row % per_row * wide + border
                cell = file.crop((left, top, left + width * times, top + height * times))
                cells.append(np.array(cell.convert("RGB"))[::times, ::times])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FastmttError(
            f"{path} is no picture of {count} distilled images of {width}x{height} "
            f"({one_line(error)}); put it back whole or remove it"
        ) from None
    return torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).float() / 255


def _class_rows(
    run: Run, images: Tensor, labels: Tensor, share: float, exact: bool
) -> list[ClassRow]:
    rows = []
    for label in labels.unique().tolist():
        members = images[labels == label]
        shown = max(1, int(share * len(members)))
        sprite = _sprite(members[:shown], exact=exact)
        rows.append(ClassRow(run.class_name(label), sprite, shown, len(members)))
    return rows


def _frame_rows(labels: Tensor) -> Tensor:
    """Choose what a frame shows: the same number of each class, at least one."""
    members = [torch.nonzero(labels == label)[:, 0] for label in labels.unique().tolist()]
    each = max(1, _FRAME_CELLS // len(members))
    return torch.cat([rows[:each] for rows in members])


def _evenly(pictures: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    if len(pictures) <= most:
        return pictures
    last = len(pictures) - 1
    return [pictures[round(index * last / (most - 1))] for index in range(most)]


def _sprite(images: Tensor, *, exact: bool) -> Sprite:
    """Lay images [n,3,H,W] out in five or ten columns, with clear lines between them."""
    count = len(images)
    columns = min(count, 5 if count <= 20 else 10)
    colours = make_grid(images, nrow=columns, padding=1)
    clear = make_grid(torch.ones_like(images[:, :1]), nrow=columns, padding=1)[:1]
    picture = torch.cat([colours, clear])
    if count > 1:  # a single one has no border
        picture = picture[:, 1:-1, 1:-1]
    image = Image.fromarray(picture.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy())
    kind = "png" if exact else "webp"
    file = io.BytesIO()
    image.save(file, kind, quality=_QUALITY, optimize=True)
    encoded = base64.b64encode(file.getvalue()).decode()
    return Sprite(f"data:image/{kind};base64,{encoded}", columns, image.width, image.height)
