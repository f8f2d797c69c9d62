"""Small .npz archives of JPEG images, made by the tests."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
    """Encode [H,W,3] or grayscale [H,W] uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def split(prefix: str, files: Sequence[bytes], labels: Sequence[int]) -> dict[str, np.ndarray]:
    return {
        f"{prefix}_jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        f"{prefix}_offsets": np.cumsum([0, *map(len, files)]),
        f"{prefix}_labels": np.array(labels),
    }


def picture(label: int, index: int, size: int = 32) -> np.ndarray:
    """A smooth RGB picture, different for each label and index, that JPEG barely changes."""
    y, x = np.mgrid[0:size, 0:size] / size
    red = 255 * np.abs(np.sin(label + x))
    green = 255 * np.abs(np.cos(index + y))
    return np.stack([red, green, 255 * x * y], axis=-1).astype(np.uint8)


def small_cifar(**changes: Any) -> dict[str, Any]:
    """The arrays of an archive of ten classes with two train images and one test image each."""
    train = [(label, index) for label in range(10) for index in range(2)]
    arrays = {
        **split("train", [jpeg(picture(*key)) for key in train], [key[0] for key in train]),
        **split("test", [jpeg(picture(label, 5)) for label in range(10)], range(10)),
        "classes": np.array([f"class {label}" for label in range(10)]),
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def save(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez_compressed(path, **arrays)
    return path
