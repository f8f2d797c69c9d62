"""Distilled sets of the published programs, in each layout they save.

MTT, FTD, TESLA and PDD save images and int64 labels, DATM and PAD images, float logits and the
learning rate, IDC one list of images in [0,1] and labels. Images lie in the space they were trained
in, which no file names: the data set's, normalised or whitened as it is loaded here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fastmtt.data import DataSet
from fastmtt.decode import Decode
from fastmtt.errors import FastmttError
from fastmtt.pickles import read_pickle
from fastmtt.progress import say
from fastmtt.synthetic import Synthetic, misshapen, unsound

_IMAGES = "images [n,C,H,W] in their training space, or IDC's list [images in [0,1], labels]"
_LABELS = "int64 labels [n], or float logits [n,classes]"
_LR = "the learning rate, one number"


def load_published(
    images_file: Path,
    labels_file: Path | None = None,
    lr_file: Path | None = None,
    lr: float | None = None,
    *,
    dataset: DataSet,
    factor: int = 1,
) -> Synthetic:
    """Read a distilled set that a published program saved; what is assumed of it is said.

    Args:
        images_file: `images_best.pt` and the like, or IDC's `data.pt`.
        labels_file: `labels_best.pt` and the like; None: those of `data.pt`, or class by class.
        lr_file: `lr_best.pt` of DATM and PAD, `syn_lr_best.pt` of PDD.
        lr: The learning rate, instead of the file's.
        dataset: What it was distilled from, in the space it was distilled in.
        factor: Of `data.pt`: cells on a side of a stored image, each a training image.

    Raises:
        FastmttError: A file is missing, damaged, foreign, holds code or what is no distilled set;
            or there is no learning rate.
    """
    images, labels = _images(images_file, dataset, factor)
    if labels_file is not None and labels is not None:
        raise FastmttError(f"{images_file} holds labels of its own; leave out label_dir")
    if labels_file is not None:
        labels = _tensor(labels_file, _LABELS)
    if labels is None:
        labels = _class_by_class(images_file, len(images), len(dataset.classes))
    images, labels = _plain(images_file, images), _plain(labels_file or images_file, labels)
    rate = _rate(images_file, lr_file, lr)
    complaint = misshapen(images, labels, rate) or unsound(images, labels, rate)
    if complaint:
        raise FastmttError(f"{images_file} and its labels are no distilled set: {complaint}")
    return Synthetic(images, labels, rate)


def _images(file: Path, dataset: DataSet, factor: int) -> tuple[Tensor, Tensor | None]:
    """Read the images in the training space, and the labels where they are in the same file."""
    content = read_pickle(file, _IMAGES)
    if isinstance(content, Tensor) and factor != 1:
        raise FastmttError(
            f"{file} holds a tensor, and factor decodes IDC's list [images, labels]; leave it out"
        )
    if isinstance(content, Tensor):
        return content.detach(), None
    pair = isinstance(content, list | tuple) and len(content) == 2
    if not pair or not all(isinstance(part, Tensor) for part in content):
        raise FastmttError(f"{file} holds {_kind(content)}, wanted {_IMAGES}")
    pixels, labels = (part.detach() for part in content)
    if pixels.shape[1:] != dataset.image_shape or not pixels.is_floating_point():
        raise FastmttError(
            f"{file} holds images {list(pixels.shape)} {pixels.dtype}, {dataset.name} has "
            f"{list(dataset.image_shape)}, floating point; give the data set it was distilled from"
        )
    say(
        f"{file}: taken for IDC's images in [0,1], decoded by factor {factor} and "
        f"brought into the space of {dataset.name}"
    )
    decoded, labels, _ = Decode(factor).whole(_plain(file, pixels), labels)
    return dataset.space.transform(decoded), labels


def _class_by_class(file: Path, count: int, classes: int) -> Tensor:
    """Give the labels the published programs start from: 0...0, 1...1, and so on."""
    if count == 0 or count % classes:
        raise FastmttError(
            f"{file} holds {count} images, which is no multiple of {classes} classes, so their "
            "order says nothing about them; give label_dir, the file of labels"
        )
    say(f"{file}: without label_dir, {count // classes} images a class are taken, class by class")
    return torch.arange(classes).repeat_interleave(count // classes)


def _rate(images_file: Path, lr_file: Path | None, lr: float | None) -> Tensor:
    if lr is not None:
        return torch.tensor(lr)
    if lr_file is None:
        raise FastmttError(
            f"{images_file} comes without a learning rate, which MTT, FTD, TESLA and IDC do not "
            "save; give --lr, from the log of its run, or lr_dir, the file of DATM, PAD and PDD"
        )
    content = read_pickle(lr_file, _LR)
    if isinstance(content, Tensor) and content.numel() == 1:
        content = content.item()
    if isinstance(content, bool) or not isinstance(content, int | float):
        raise FastmttError(f"{lr_file} holds {_kind(content)}, wanted {_LR}")
    return torch.tensor(float(content))


def _tensor(file: Path, wanted: str) -> Tensor:
    content = read_pickle(file, wanted)
    if not isinstance(content, Tensor):
        raise FastmttError(f"{file} holds {_kind(content)}, wanted {wanted}")
    return content.detach()


def _plain(file: Path, tensor: Tensor) -> Tensor:
    """Bring numbers to float32 or int64 and say so; anything else stays, to be refused."""
    wanted = torch.float32 if tensor.is_floating_point() else torch.int64
    if tensor.dtype == wanted or tensor.dtype not in _CAST:
        return tensor
    say(f"{file}: {list(tensor.shape)} {tensor.dtype} brought to {wanted}")
    return tensor.to(wanted)


_CAST = {torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int16}


def _kind(content: object) -> str:
    if isinstance(content, Tensor):
        return f"a tensor {list(content.shape)}"
    size = f" of {len(content)}" if isinstance(content, list | tuple | dict) else ""
    return f"a {type(content).__name__}{size}"
