"""Decoding in threads, and the cache of what was decoded."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from fastmtt.data import decode
from fastmtt.data.raw import RawImages
from fastmtt.errors import FastmttError


def test_chunks_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    both = threading.Barrier(2, timeout=20)  # passed only if two chunks are worked on at once
    done = np.zeros(250, dtype=int)

    def work(index: int) -> None:
        if index in (0, 100):
            both.wait()
        done[index] += 1

    decode.in_threads(250, work, desc="", show=False)
    assert done.tolist() == [1] * 250


def test_the_first_error_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def work(index: int) -> None:
        seen.append(index)
        raise FastmttError(f"image {index}")

    with pytest.raises(FastmttError, match="image 0"):
        decode.in_threads(100_000, work, desc="", show=False)
    assert len(seen) < 1000


def test_a_progress_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    images = decode.decode(
        3, (1, 2, 2), lambda i: np.full((1, 2, 2), i, np.uint8), desc="decoding x", show=True
    )
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2] and images.dtype == torch.uint8
    assert "decoding x" in capsys.readouterr().err


def some() -> RawImages:
    image, label = torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    return RawImages(image, label, image.clone(), label.clone(), ("only",), "made")


def test_a_full_disk_leaves_a_warning_and_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path))
    for error in (OSError("No space left on device"), SafetensorError("No space left on device")):

        def full(*how: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(decode, "write_safetensors", full)
        with pytest.warns(UserWarning, match="could not be cached .No space left"):
            raw = decode.through_cache("abc", tmp_path, "here", some)
        assert raw.classes == ("only",)
    assert not list(tmp_path.iterdir())
