"""Archives of JPEG images: one compressed .npz, no pickle inside.

Arrays: `train_jpeg` uint8 (all files end to end), `train_offsets` int64 [n+1], `train_labels`
int64 [n], the same for `test_` or `val_`, and the classes' names as `classes` or `wnids`. Image i
is `train_jpeg[train_offsets[i]:train_offsets[i + 1]]`. Decoded once, then kept in the cache.
"""

import hashlib
import io
import os
import struct
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastmtt.data.raw import RawImages, Wanted
from fastmtt.errors import FastmttError
from fastmtt.files import cache_folder, one_line, read_safetensors, write_safetensors
from fastmtt.progress import progress

KIND = "fastmtt decoded images 1"
_CHUNK = 500
_PARTS = ("jpeg", "offsets", "labels")
# What numpy and zipfile raise, between them, on files cut short or overwritten.
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, IndexError, MemoryError, SyntaxError),
    *(NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error),
)
_Arrays = dict[str, NDArray[Any]]


def read_archive(path: Path, wanted: Wanted, *, show: bool = True) -> RawImages:
    """Read an archive's images, decoded; grayscale images become RGB.

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
    cache = cache_folder() / f"images_{digest}.safetensors"
    raw = _cached(cache, path)
    if raw is None:
        raw = _decode_archive(path, wanted, show)
        _keep(cache, raw)
    _check_fits(path, wanted, len(raw.classes), raw.train_images.shape[-2:])
    return raw


def _decode_archive(path: Path, wanted: Wanted, show: bool) -> RawImages:
    arrays = _read_arrays(path)
    test = "test" if "test_jpeg" in arrays else "val"
    names = arrays["classes"] if "classes" in arrays else arrays["wnids"]
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
        source=f"JPEG archive {path.name}",
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
    if (classes, 3, height, width) != (wanted.classes, *wanted.shape):
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
    """Decode one split in threads to [n,3,H,W] uint8."""
    count = len(arrays[f"{split}_labels"])
    _, height, width = wanted.shape
    pixels = np.empty((count, 3, height, width), dtype=np.uint8)

    def decode(begin: int) -> None:
        for index in range(begin, min(begin + _CHUNK, count)):
            image = _open(path, arrays, split, index)
            if image.size != (width, height):
                raise FastmttError(
                    f"{path}: {split} image {index} is {image.height}x{image.width}, "
                    f"wanted {height}x{width} as the first"
                )
            try:
                pixels[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            except (OSError, SyntaxError, ValueError) as error:
                raise FastmttError(
                    f"{path} is damaged: {split} image {index} cannot be decoded ({error})"
                ) from None

    begins = range(0, count, _CHUNK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(decode, begins)
        for _ in progress(done, len(begins), f"decoding {split} images") if show else done:
            pass
    return torch.from_numpy(pixels)


def _cached(cache: Path, path: Path) -> RawImages | None:
    if not cache.exists():
        return None
    try:
        tensors, metadata = read_safetensors(cache, KIND)
        return RawImages(
            train_images=tensors["train_images"],
            train_labels=tensors["train_labels"],
            test_images=tensors["test_images"],
            test_labels=tensors["test_labels"],
            classes=tuple(metadata["classes"]),
            source=f"JPEG archive {path.name}",
        )
    except (FastmttError, KeyError, TypeError) as error:
        warnings.warn(
            f"decoding {path} again: its cached images are unusable ({error})", stacklevel=3
        )
        return None


def _keep(cache: Path, raw: RawImages) -> None:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    tensors = {name: getattr(raw, name) for name in names}
    try:
        write_safetensors(cache, KIND, tensors, {"classes": list(raw.classes)})
    except OSError as error:
        warnings.warn(
            f"the decoded images could not be cached ({error}); set FASTMTT_CACHE", stacklevel=3
        )
