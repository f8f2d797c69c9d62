"""Archives of JPEG images: one compressed .npz, no pickle inside.

Arrays: `train_jpeg` uint8 (all files end to end), `train_offsets` int64 [n+1], `train_labels`
int64 [n], the same for `test_` or `val_`, and the classes' names as `classes` or `wnids`. Image i
is `train_jpeg[train_offsets[i]:train_offsets[i + 1]]`. Decoded once, then kept in the cache.
"""

import hashlib
import io
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastmtt.data.decode import decode, through_cache
from fastmtt.data.raw import RawImages, Wanted
from fastmtt.errors import FastmttError
from fastmtt.files import one_line

_PARTS = ("jpeg", "offsets", "labels")
# What numpy and zipfile raise, between them, on files cut short or overwritten.
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, MemoryError, SyntaxError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error),
    tokenize.TokenError,
)
_Arrays = dict[str, NDArray[Any]]


def read_archive(path: Path, wanted: Wanted, *, show: bool = True) -> RawImages:
    """Read an archive's images, decoded; grayscale ones become RGB where the data set is.

    Args:
        path: The .npz file.
        wanted: The data set it is read as; its number of classes and image size are checked.
        show: Show a progress bar while decoding.

    Raises:
        FastmttError: The archive is missing, truncated, foreign, or holds another data set.
    """
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise FastmttError(
            f"{path} cannot be read ({error.strerror}); give data_path an .npz archive of JPEG "
            "images or the data set's folder"
        ) from None
    digest += "_gray" if wanted.shape[0] == 1 else ""
    source = f"JPEG archive {path.name}"
    raw = through_cache(digest, path, source, lambda: _decode_archive(path, wanted, source, show))
    _check_fits(path, wanted, len(raw.classes), raw.train_images.shape[-2:])
    return raw


def _decode_archive(path: Path, wanted: Wanted, source: str, show: bool) -> RawImages:
    arrays = _read_arrays(path)
    test = "test" if "test_jpeg" in arrays else "val"
    names = arrays["classes"] if "classes" in arrays else arrays["wnids"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise FastmttError(
            f"{path} is damaged: its classes are {names.dtype} {list(names.shape)}, wanted a list "
            "of names"
        )
    for split in ("train", test):
        _check_split(path, arrays, split, len(names))
    counts = np.bincount(arrays["train_labels"], minlength=len(names))
    if counts.min() == 0:
        raise FastmttError(f"{path} has no training image of class {names[counts.argmin()]!s}")
    _check_fits(path, wanted, len(names), _first_size(path, arrays))
    return RawImages(
        train_images=_decode(path, arrays, "train", wanted, show),
        train_labels=torch.from_numpy(arrays["train_labels"].astype(np.int64)),
        test_images=_decode(path, arrays, test, wanted, show),
        test_labels=torch.from_numpy(arrays[f"{test}_labels"].astype(np.int64)),
        classes=tuple(str(name) for name in names),
        source=source,
    )


def _read_arrays(path: Path) -> _Arrays:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except _DAMAGE as error:
        raise FastmttError(
            f"{path} is truncated or no .npz archive of JPEG images ({one_line(error)}); "
            "fetch it again"
        ) from None
    test = "test" if "test_jpeg" in arrays else "val"
    wanted = [f"{split}_{part}" for split in ("train", test) for part in _PARTS]
    if "wnids" not in arrays:
        wanted.append("classes")
    absent = [name for name in wanted if name not in arrays]
    if absent:
        raise FastmttError(
            f"{path} is no archive of JPEG images: it lacks {', '.join(absent)} and holds "
            f"{', '.join(arrays) or 'nothing'}"
        )
    return arrays


def _check_split(path: Path, arrays: _Arrays, split: str, classes: int) -> None:
    jpeg, offsets, labels = (arrays[f"{split}_{part}"] for part in _PARTS)
    complaint = ""
    if jpeg.dtype != np.uint8 or jpeg.ndim != 1:
        complaint = f"{split}_jpeg is {jpeg.dtype} {list(jpeg.shape)}, wanted uint8 [bytes]"
    elif offsets.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
        complaint = f"{split}_offsets and {split}_labels must be integers"
    elif labels.ndim != 1 or offsets.shape != (len(labels) + 1,) or len(labels) == 0:
        complaint = (
            f"{split}_offsets {list(offsets.shape)} and {split}_labels {list(labels.shape)} do "
            "not fit, wanted [n + 1] and [n]"
        )
    elif offsets[0] != 0 or offsets[-1] != len(jpeg) or (np.diff(offsets.astype(int)) <= 0).any():
        complaint = f"{split}_offsets do not cut the {len(jpeg)} bytes of {split}_jpeg into files"
    elif labels.min() < 0 or labels.max() >= classes:
        complaint = (
            f"{split}_labels run from {labels.min()} to {labels.max()}, wanted 0 to {classes - 1}"
        )
    if complaint:
        raise FastmttError(f"{path} is damaged: {complaint}")


def _check_fits(path: Path, wanted: Wanted, classes: int, size: Any) -> None:
    height, width = (int(side) for side in size)
    if (classes, height, width) != (wanted.classes, *wanted.shape[1:]):
        raise FastmttError(
            f"{path} holds {classes} classes of {height}x{width} images, {wanted.name} wants "
            f"{wanted.classes} classes of {wanted.shape[1]}x{wanted.shape[2]}; choose the data "
            "set or the archive that fits"
        )


def _first_size(path: Path, arrays: _Arrays) -> tuple[int, int]:
    width, height = _open(path, arrays, "train", 0).size
    return height, width


def _open(path: Path, arrays: _Arrays, split: str, index: int) -> Image.Image:
    begin, end = arrays[f"{split}_offsets"][index : index + 2]
    data = io.BytesIO(arrays[f"{split}_jpeg"][begin:end].tobytes())
    try:
        return Image.open(data, formats=("JPEG",))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise FastmttError(f"{path} is damaged: {split} image {index} is no JPEG") from None


def _decode(path: Path, arrays: _Arrays, split: str, wanted: Wanted, show: bool) -> Tensor:
    """Decode one split to [n,C,H,W] uint8."""
    channels, height, width = wanted.shape

    def read(index: int) -> NDArray[Any]:
        image = _open(path, arrays, split, index)
        if image.size != (width, height):
            raise FastmttError(
                f"{path}: {split} image {index} is {image.height}x{image.width}, "
                f"wanted {height}x{width} as the first"
            )
        try:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
            return pixels.reshape(height, width, channels).transpose(2, 0, 1)
        except (OSError, SyntaxError, ValueError) as error:
            raise FastmttError(
                f"{path} is damaged: {split} image {index} cannot be decoded ({error})"
            ) from None

    count = len(arrays[f"{split}_labels"])
    return decode(count, wanted.shape, read, desc=f"decoding {split} images", show=show)
