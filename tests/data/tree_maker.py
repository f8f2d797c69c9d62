"""Small folders in the true layouts of published data sets, made by the tests."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from archive_maker import picture
from PIL import Image


def image(file: Path, label: int, index: int, size: int = 64) -> Path:
    """Write one smooth picture; the suffix says the format, .pt a float tensor."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture(label, index, size)
    if file.suffix == ".pt":
        torch.save(torch.from_numpy(pixels).permute(2, 0, 1) / 255, file)
    else:
        Image.fromarray(pixels).save(file)
    return file


def pixels(file: Path) -> torch.Tensor:
    """What Pillow reads, [3,H,W] uint8."""
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def wnids(count: int) -> list[str]:
    return [f"n{10_000_000 + 7 * label}" for label in range(count)]


def tiny_train(root: Path, classes: Iterable[str]) -> None:
    for label, wnid in enumerate(classes):
        image(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", label, 0)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")


def thousand_classes(root: Path, classes: Iterable[str], file: Path) -> None:
    """Write train/<class>/0 and val/<class>/0 as links to one file: quick to make."""
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            os.link(file, root / split / name / f"0{file.suffix}")


def class_tree(
    root: Path,
    splits: Iterable[str],
    classes: Iterable[str],
    *,
    each: int = 1,
    size: int = 64,
    suffix: str = ".JPEG",
) -> Path:
    """Write <split>/<class>/<i><suffix>."""
    names = list(classes)
    for split in splits:
        for label, name in enumerate(names):
            for index in range(each):
                where = root / split / name / f"{split}_{index}{suffix}"
                image(where, label, index + 10 * len(split), size)
    return root
