"""Archives of JPEG images: decoded as Pillow does, cached, refused where they do not fit."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archive_maker import jpeg, picture, save, small_cifar, split
from PIL import Image

from fastmtt.data.archives import read_archive
from fastmtt.data.raw import Wanted
from fastmtt.errors import FastmttError

CIFAR10 = Wanted("CIFAR10", 10, (3, 32, 32))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decoded(content: bytes) -> torch.Tensor:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_images_labels_and_classes_come_out(tmp_path: Path) -> None:
    raw = read_archive(save(tmp_path / "a.npz", small_cifar()), CIFAR10, show=False)
    assert raw.train_images.shape == (20, 3, 32, 32) and raw.test_images.shape == (10, 3, 32, 32)
    assert raw.train_images.dtype == torch.uint8 and raw.train_labels.dtype == torch.int64
    assert raw.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert raw.classes[7] == "class 7" and raw.white == 255 and "a.npz" in raw.source
    assert torch.equal(raw.train_images[5], decoded(jpeg(picture(2, 1))))
    assert torch.equal(raw.test_images[9], decoded(jpeg(picture(9, 5))))
    original = torch.from_numpy(picture(2, 1)).permute(2, 0, 1).int()
    assert (raw.train_images[5].int() - original).abs().max() < 8


def test_more_images_than_one_thread_takes_keep_their_order(tmp_path: Path) -> None:
    keys = [(index % 10, index) for index in range(1203)]
    arrays = small_cifar(
        **split("train", [jpeg(picture(*key)) for key in keys], [key[0] for key in keys])
    )
    raw = read_archive(save(tmp_path / "a.npz", arrays), CIFAR10, show=False)
    for index in (0, 499, 500, 501, 999, 1000, 1202):
        assert torch.equal(raw.train_images[index], decoded(jpeg(picture(*keys[index]))))


def test_grayscale_becomes_rgb_and_val_and_wnids_serve(tmp_path: Path) -> None:
    files = [jpeg(picture(label, 0, 64)[:, :, 0]) for label in range(10)]
    arrays = {
        **split("train", files, range(10)),
        **split("val", files[::-1], range(9, -1, -1)),
        "wnids": np.array([f"n{label}" for label in range(10)]),
    }
    raw = read_archive(
        save(tmp_path / "a.npz", arrays), Wanted("Tiny", 10, (3, 64, 64)), show=False
    )
    assert raw.classes[3] == "n3"
    assert torch.equal(raw.train_images[3], decoded(files[3]))
    assert torch.equal(raw.train_images[3][0], raw.train_images[3][2])
    assert torch.equal(raw.test_images[0], decoded(files[9]))


def test_the_second_reading_takes_the_cached_pixels(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.npz", small_cifar())
    first = read_archive(path, CIFAR10, show=False)
    monkeypatch.setattr(Image, "open", None)  # decoding is impossible from here on
    second = read_archive(path, CIFAR10, show=False)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert first.classes == second.classes and first.source == second.source
    with pytest.raises(FastmttError, match=r"holds 10 classes of 32x32 .* Tiny wants 200"):
        read_archive(path, Wanted("Tiny", 200, (3, 64, 64)), show=False)


def test_a_damaged_cache_is_decoded_again(tmp_path: Path, cache: Path) -> None:
    path = save(tmp_path / "a.npz", small_cifar())
    first = read_archive(path, CIFAR10, show=False)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1])
    with pytest.warns(UserWarning, match=r"decoding .*a\.npz again"):
        again = read_archive(path, CIFAR10, show=False)
    assert torch.equal(first.train_images, again.train_images)
    assert kept.read_bytes() == whole


def test_an_unwritable_cache_is_said(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    path = save(tmp_path / "a.npz", small_cifar())
    with pytest.warns(UserWarning, match="FASTMTT_CACHE"):
        assert len(read_archive(path, CIFAR10, show=False).train_images) == 20


def test_a_truncated_archive_is_refused_at_any_length(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.npz", small_cifar()).read_bytes()
    cut = tmp_path / "cut.npz"
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(FastmttError, match=r"cut\.npz is truncated or no \.npz archive") as no:
            read_archive(cut, CIFAR10, show=False)
        assert "\n" not in str(no.value)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(FastmttError, match=r"a\.npz cannot be read \(No such file"):
        read_archive(path, CIFAR10, show=False)
    torch.save([torch.ones(3)], path)
    with pytest.raises(FastmttError, match=r"a\.npz is "):
        read_archive(path, CIFAR10, show=False)
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "a.npy").rename(path)
    with pytest.raises(FastmttError, match="a single array"):
        read_archive(path, CIFAR10, show=False)
    save(path, {"x": np.ones(3)})
    with pytest.raises(FastmttError, match="it lacks train_jpeg, .*, classes and holds x"):
        read_archive(path, CIFAR10, show=False)
    save(path, {"classes": np.array([{}], dtype=object)})
    with pytest.raises(FastmttError, match=r"Object arrays cannot be loaded"):
        read_archive(path, CIFAR10, show=False)


GOOD = small_cifar()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"test_labels": None}, "it lacks test_labels"),
        ({"train_jpeg": GOOD["train_jpeg"].astype(np.int16)}, "train_jpeg is int16"),
        ({"train_offsets": GOOD["train_offsets"] / 1.0}, "must be integers"),
        ({"train_offsets": GOOD["train_offsets"][:-1]}, "do not fit"),
        ({"train_offsets": GOOD["train_offsets"][::-1]}, "do not cut the"),
        ({"train_jpeg": GOOD["train_jpeg"][:-1]}, "do not cut the"),
        ({"test_labels": GOOD["test_labels"] + 1}, "run from 1 to 10, wanted 0 to 9"),
        ({"train_labels": GOOD["train_labels"] - 1}, "run from -1 to 8"),
        (
            {"train_labels": np.maximum(GOOD["train_labels"], 1)},
            "no training image of class class 0",
        ),
        ({"train_jpeg": GOOD["train_jpeg"] * 0}, "train image 0 is no JPEG"),
        ({"classes": np.array([str(i) for i in range(11)])}, "no training image of class 10"),
        (
            split("train", [jpeg(picture(i, 0, 16)) for i in range(10)], range(10)),
            "of 16x16 images",
        ),
        (
            split("test", [jpeg(picture(i, 0, 32 + i // 9)) for i in range(10)], range(10)),
            "test image 9 is 33x33, wanted 32x32",
        ),
        (
            split(
                "test",
                [jpeg(picture(0, i))[: 800 if i == 4 else None] for i in range(10)],
                range(10),
            ),
            "test image 4 cannot be decoded",
        ),
    ],
)
def test_damaged_contents_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    path = save(tmp_path / "broken.npz", small_cifar(**changes))
    with pytest.raises(FastmttError, match=sentence) as refused:
        read_archive(path, CIFAR10, show=False)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
