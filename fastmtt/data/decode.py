"""Many images decoded in threads, and what they decode to kept in the cache."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from fastmtt.data.memory import require
from fastmtt.data.raw import RawImages
from fastmtt.errors import FastmttError
from fastmtt.files import cache_folder, read_safetensors, write_safetensors
from fastmtt.progress import progress

KIND = "fastmtt decoded images 1"
_CHUNK = 100


def decode(
    count: int,
    shape: tuple[int, int, int],
    read: Callable[[int], np.ndarray],
    *,
    desc: str,
    show: bool,
) -> Tensor:
    """Decode images into one tensor, each straight to its place.

    Args:
        count: Number of images.
        shape: An image's (C, H, W).
        read: Gives image i as [C,H,W] uint8; called from several threads.
        desc: What is being done, for the progress bar.
        show: Show it.

    Returns:
        [count,C,H,W] uint8.

    Raises:
        FastmttError: They do not fit in memory, or what `read` raises.
    """
    require(
        count * int(np.prod(shape)),
        f"{desc}: {count} of {'x'.join(map(str, shape))}",
        "use a machine with more memory, fewer images or a lower res",
    )
    pixels = np.empty((count, *shape), dtype=np.uint8)

    def place(index: int) -> None:
        pixels[index] = read(index)

    in_threads(count, place, desc=desc, show=show)
    return torch.from_numpy(pixels)


def in_threads(count: int, work: Callable[[int], None], *, desc: str, show: bool) -> None:
    """Call `work` with 0 to count - 1, in threads; the first error ends it."""

    def chunk(begin: int) -> None:
        for index in range(begin, min(begin + _CHUNK, count)):
            work(index)

    begins = range(0, count, _CHUNK)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        done = pool.map(chunk, begins)
        for _ in progress(done, len(begins), desc) if show else done:
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def through_cache(digest: str, path: Path, source: str, make: Callable[[], RawImages]) -> RawImages:
    """Take decoded images from the cache, or make and keep them.

    Args:
        digest: Names the content; it changes when the files do.
        path: What was decoded, for warnings.
        source: What to call it beside a result.
        make: Decodes.
    """
    cache = cache_folder() / f"images_{digest}.safetensors"
    raw = _cached(cache, path, source)
    if raw is None:
        raw = make()
        _keep(cache, raw)
    return raw


def _cached(cache: Path, path: Path, source: str) -> RawImages | None:
    if not cache.exists():
        return None
    require(
        cache.stat().st_size,
        f"the decoded images of {path}",
        "use a machine with more memory, fewer images or a lower res",
    )
    try:
        tensors, metadata = read_safetensors(cache, KIND)
        return RawImages(
            train_images=tensors["train_images"],
            train_labels=tensors["train_labels"],
            test_images=tensors["test_images"],
            test_labels=tensors["test_labels"],
            classes=tuple(metadata["classes"]),
            source=source,
        )
    except (FastmttError, KeyError, TypeError) as error:
        warnings.warn(
            f"decoding {path} again: its cached images are unusable ({error})", stacklevel=4
        )
        return None


def _keep(cache: Path, raw: RawImages) -> None:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    tensors = {name: getattr(raw, name) for name in names}
    try:
        write_safetensors(cache, KIND, tensors, {"classes": list(raw.classes)})
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"the decoded images could not be cached ({error}); set FASTMTT_CACHE", stacklevel=4
        )
