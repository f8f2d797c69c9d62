"""Folders of class folders: found, listed and decoded into one tensor."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmtt.data.decode import decode, in_threads, through_cache
from fastmtt.data.image_files import GRAY, image_suffixes, open_image, read_image
from fastmtt.data.raw import RawImages, Request
from fastmtt.errors import FastmttError

_Size = tuple[int, int]


@dataclass(frozen=True)
class Split:
    """One split's files, in their order.

    Attributes:
        files: Their paths.
        labels: Their labels.
    """

    files: list[str]
    labels: list[int]


def read_folder(request: Request) -> RawImages:
    """Read any folder with train/<class>/... and test/<class>/... or val/<class>/...

    Classes are sorted by name. Images that are all grayscale have one channel; three otherwise.
    """
    root, test = find_splits([request.path], ("test", "val"))
    classes = class_folders(root / "train")
    if not classes:
        raise FastmttError(
            f"{root / 'train'} has no class folders: wanted train/<class>/<images>, "
            f"{found(root / 'train')}"
        )
    same_classes(root / "train", root / test, classes, class_folders(root / test))
    return read_splits(
        listed(root / "train", classes),
        listed(root / test, classes),
        tuple(classes),
        path=root,
        source=f"the folder {root.resolve().name}",
        res=request.res,
        crop=request.crop,
        show=request.show,
    )


def find_splits(roots: Sequence[Path], tests: Sequence[str]) -> tuple[Path, str]:
    """Give the first root that has train and one of `tests`, and which.

    Raises:
        FastmttError: None has.
    """
    for root in roots:
        for test in tests:
            if (root / "train").is_dir() and (root / test).is_dir():
                return root, test
    names = " or ".join(tests)
    raise FastmttError(
        f"{roots[0]} holds no data set of folders: wanted train and {names} in it, "
        f"{found(roots[0])}; point data_path to the folder that has them"
    )


def found(path: Path) -> str:
    """Say what lies at a path, as the end of a sentence."""
    if not path.exists():
        return "there is no such folder"
    if not path.is_dir():
        return "it is a file"
    names = sorted(os.listdir(path))
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"it holds {', '.join(names[:5]) or 'nothing'}{more}"


def class_folders(folder: Path) -> list[str]:
    """Give the sorted names of the folders in a folder; hidden ones do not count."""
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def same_classes(train: Path, test: Path, names: Iterable[str], others: Iterable[str]) -> None:
    """Refuse class folders that one split has and the other lacks."""
    names, others = set(names), set(others)
    for here, there, extra in ((train, test, names - others), (test, train, others - names)):
        if extra:
            raise FastmttError(
                f"{here} and {there} differ: {len(extra)} class folder(s) of the first, "
                f"{', '.join(sorted(extra)[:3])}{' ...' if len(extra) > 3 else ''}, are not in "
                f"the second, {found(there)}; both want the same classes"
            )


def listed(folder: Path, classes: Sequence[str], *, tensors: bool = False) -> Split:
    """List the images under each class folder, however deep, sorted; label = place in `classes`.

    Args:
        folder: The split's folder.
        classes: Its class folders.
        tensors: .pt files count too.

    Raises:
        FastmttError: A class has no image.
    """
    suffixes = image_suffixes() | ({".pt"} if tensors else set())
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        before = len(files)
        for where, _, names in sorted(os.walk(folder / name, followlinks=True)):
            kept = (n for n in sorted(names) if os.path.splitext(n)[1].lower() in suffixes)
            files += (os.path.join(where, n) for n in kept if not n.startswith("."))
        if len(files) == before:
            raise FastmttError(
                f"{folder / name} has no image: {found(folder / name)}; every class wants one"
            )
        labels += [label] * (len(files) - before)
    return Split(files, labels)


def read_splits(
    train: Split,
    test: Split,
    classes: tuple[str, ...],
    *,
    path: Path,
    source: str,
    res: int | None,
    show: bool,
    channels: int | None = None,
    crop: bool = False,
) -> RawImages:
    """Decode two splits, or take them from the cache while no file has changed.

    Args:
        train: Training files.
        test: Test files.
        classes: The classes' names.
        path: The data set's folder.
        source: What to call it beside a result.
        res: Height and width images are brought to, see `resized`; None, they must be equal.
        show: Show progress.
        channels: 1 or 3; None, 1 where all images are grayscale.
        crop: Whether they keep their aspect ratio, see `cropped`.
    """

    def make() -> RawImages:
        shape = _shape([*train.files, *test.files], res, channels, show)
        return RawImages(
            train_images=_decoded(train, shape, res, crop, "train", show),
            train_labels=torch.tensor(train.labels),
            test_images=_decoded(test, shape, res, crop, "test", show),
            test_labels=torch.tensor(test.labels),
            classes=classes,
            source=source,
        )

    how = f"{res} {channels}{' crop' if crop else ''}"
    digest = _digest(path, [train, test], classes, how)
    return through_cache(digest, path, source, make)


def _digest(path: Path, splits: list[Split], classes: tuple[str, ...], how: str) -> str:
    """Name files by path, size and times of change: reading them would take as long.

    The folder itself and the time the system sets count too: an unpacked archive may give files of
    other pixels the same names, sizes and times.
    """
    state = hashlib.sha256(f"folder 2 {path.resolve()} {how} {classes}".encode())
    for split in splits:
        for file, label in zip(split.files, split.labels, strict=True):
            try:
                stat = os.stat(file)
            except OSError as error:
                raise FastmttError(f"{file} cannot be read ({error.strerror})") from None
            name = os.path.relpath(file, path)
            times = f"{stat.st_mtime_ns} {stat.st_ctime_ns}"
            state.update(f"\n{label} {stat.st_size} {times} {name}".encode())
        state.update(b"\n")
    return state.hexdigest()[:32]


def _decoded(
    split: Split, shape: tuple[int, int, int], res: int | None, crop: bool, name: str, show: bool
) -> Tensor:
    def read(index: int) -> np.ndarray:
        return read_image(split.files[index], shape, res, crop)

    return decode(len(split.files), shape, read, desc=f"decoding {name} images", show=show)


def _shape(
    files: list[str], res: int | None, channels: int | None, show: bool
) -> tuple[int, int, int]:
    """The one (C, H, W) of all images; their headers are looked at only where it is unknown."""
    if res is not None and channels is not None:
        return channels, res, res
    size, gray = _size(files[0]), np.zeros(len(files), dtype=bool)

    def look(index: int) -> None:
        with open_image(files[index]) as image:
            gray[index] = image.mode in GRAY
            if res is None and image.size[::-1] != size:
                raise FastmttError(
                    f"{files[0]} is {size[0]}x{size[1]} and {files[index]} {image.height}x"
                    f"{image.width}, wanted one size: give res, the height and width to bring "
                    "all images to"
                )

    in_threads(len(files), look, desc="looking at image sizes", show=show)
    return channels or (1 if gray.all() else 3), *((res, res) if res else size)


def _size(file: str) -> _Size:
    with open_image(file) as image:
        return image.height, image.width
