"""Difficulty orders: each class's training images from easy to hard, in the field's index files.

`{indices_path}/{sort_method}.pt` holds what PAD's program (arXiv 2408.03360) reads: an int64 tensor
[K, n], row c the data set's row numbers of class c, easy ones first. Classes of unequal size are a
list of K int64 tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.files import write_pt
from fastmtt.pickles import read_pickle

_WANTED = "an int64 tensor [classes, images a class], or a list of one int64 tensor a class"


def read_order(
    name_or_path: str, folder: str | Path, dataset_labels: Tensor, classes: int
) -> list[Tensor]:
    """Read an order and make sure that it is one of these training images.

    Args:
        name_or_path: A file of the folder, with or without its `.pt`, or else a path.
        folder: Where names are looked up.
        dataset_labels: The training images' classes, int64 [n].
        classes: K.

    Returns:
        K int64 tensors on the CPU: every row number of the class once, easy images first.

    Raises:
        FastmttError: There is no such file, it is damaged or of another form, or its rows are not
            those of the classes.
    """
    path = _find(name_or_path, Path(folder))
    content = read_pickle(path, _WANTED)
    order = list(content) if isinstance(content, Tensor) and content.ndim == 2 else content
    if not isinstance(order, list) or not all(_is_row(row) for row in order):
        raise FastmttError(f"{path} holds {_form(content)}, wanted {_WANTED}")
    complaint = _complaint(order, dataset_labels.cpu(), classes)
    if complaint:
        raise FastmttError(
            f"{path} does not order these training images: {complaint}; make it from the same "
            "dataset, subset and held_out"
        )
    return order


def write_order(path: str | Path, order: Sequence[Tensor]) -> None:
    """Write an order atomically, as the field does where classes are equally large.

    Args:
        path: The file.
        order: One int64 tensor a class, easy images first.
    """
    rows = [row.detach().cpu() for row in order]
    alike = len({len(row) for row in rows}) == 1
    # Cloned: a view would bring all it is a view of into the file.
    write_pt(Path(path), torch.stack(rows) if alike else [row.clone() for row in rows])


def digest(order: Sequence[Tensor]) -> str:
    """Give an order's short name by its content: 16 hexadecimal digits of a SHA-256."""
    found = hashlib.sha256()
    for row in order:
        found.update(len(row).to_bytes(8, "little"))
        found.update(row.numpy().astype("<i8").tobytes())
    return found.hexdigest()[:16]


def _find(name_or_path: str, folder: Path) -> Path:
    path = folder / f"{name_or_path.removesuffix('.pt')}.pt"
    if path.is_file():
        return path
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    there = ", ".join(sorted(file.stem for file in folder.glob("*.pt"))) or "none"
    raise FastmttError(
        f"sort_method is {name_or_path!r}, but neither {path} nor a file of that name is there; "
        f"index files in {folder}: {there}; fastmtt.scores writes one"
    )


def _is_row(row: object) -> bool:
    return isinstance(row, Tensor) and row.dtype == torch.int64 and row.ndim == 1


def _form(content: object) -> str:
    if isinstance(content, Tensor):
        return f"a tensor {list(content.shape)} of {content.dtype}"
    if isinstance(content, list) and all(isinstance(part, Tensor) for part in content):
        return "a list of other tensors"
    return f"a {type(content).__name__}"


def _complaint(order: Sequence[Tensor], labels: Tensor, classes: int) -> str:
    """Say what is wrong with an order; empty if nothing is."""
    if len(order) != classes:
        return f"it has {len(order)} classes, the data set {classes}"
    sizes = torch.bincount(labels, minlength=classes).tolist()
    for label, (row, size) in enumerate(zip(order, sizes, strict=True)):
        strange = row[(row < 0) | (row >= len(labels))]
        if len(strange):
            return f"it names row {int(strange[0])} of {len(labels)}"
        foreign = row[labels[row] != label]
        if len(foreign):
            place = int(foreign[0])
            return f"row {place} stands under class {label} and is of class {int(labels[place])}"
        if len(row.unique()) != len(row):
            return f"class {label} names an image twice"
        if len(row) != size:
            return f"class {label} has {len(row)} rows, the data set {size} images of it"
    return ""
