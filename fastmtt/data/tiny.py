"""Tiny ImageNet from its folders: as its archive unpacks, or re-arranged as programs want it."""

from pathlib import Path

from fastmtt.data.folders import (
    Split,
    class_folders,
    find_splits,
    found,
    listed,
    read_splits,
    same_classes,
)
from fastmtt.data.raw import RawImages, Request
from fastmtt.errors import FastmttError


def read_tiny(request: Request) -> RawImages:
    """Read Tiny ImageNet, 200 classes in the order of their sorted wnids.

    `train/<wnid>/images/*` with validation images in `val/images` and `val/val_annotations.txt`,
    as unpacked, or in `val/images/<wnid>`, or in `val/<wnid>`; under data_path or its
    tiny-imagenet-200.

    Raises:
        FastmttError: A folder is missing, the classes differ, an image or line is damaged.
    """
    root, _ = find_splits([request.path, request.path / "tiny-imagenet-200"], ["val"])
    wnids = class_folders(root / "train")
    if len(wnids) != 200:
        raise FastmttError(
            f"{root / 'train'} has {len(wnids)} class folders, Tiny ImageNet 200; "
            f"{found(root / 'train')}"
        )
    return read_splits(
        listed(root / "train", wnids),
        _validation(root, wnids),
        tuple(_names(root, wnids)),
        path=root,
        source="the folders of Tiny ImageNet",
        res=64,
        channels=3,
        show=request.show,
    )


def _validation(root: Path, wnids: list[str]) -> Split:
    images = root / "val" / "images"
    if images.is_dir() and not class_folders(images):
        return _annotated(root / "val", wnids)
    folder = images if images.is_dir() else root / "val"
    same_classes(root / "train", folder, wnids, class_folders(folder))
    return listed(folder, wnids)


def _annotated(folder: Path, wnids: list[str]) -> Split:
    """List the files of val/images that val_annotations.txt names: file, wnid, box, by tabs."""
    table = folder / "val_annotations.txt"
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    split = Split([], [])
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FastmttError(
            f"{folder / 'images'} has no class folders and {table} cannot be read ({error}); "
            "unpack tiny-imagenet-200.zip again"
        ) from None
    for number, line in enumerate(lines, 1):
        file, wnid = [*line.split("\t"), "", ""][:2]
        if wnid not in labels:
            raise FastmttError(
                f"line {number} of {table} is {line[:40]!r}, wanted a file and one of the 200 "
                "wnids in train; unpack tiny-imagenet-200.zip again"
            )
        split.files.append(str(folder / "images" / Path(file).name))
        split.labels.append(labels[wnid])
    absent = set(range(len(wnids))) - set(split.labels)
    if absent:
        raise FastmttError(
            f"{table} names no image of class {wnids[min(absent)]}; "
            "unpack tiny-imagenet-200.zip again"
        )
    return split


def _names(root: Path, wnids: list[str]) -> list[str]:
    """Words for the wnids where words.txt has them."""
    words: dict[str, str] = {}
    if (root / "words.txt").is_file():
        lines = (root / "words.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        words = {wnid: name for wnid, tab, name in (line.partition("\t") for line in lines) if tab}
    return [words.get(wnid, wnid) for wnid in wnids]
