"""Any folder of class folders: formats, sizes, the cache, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from archive_maker import picture
from PIL import Image
from tree_maker import class_tree, image, pixels

from fastmtt.data import Normalised, load
from fastmtt.data.image_files import resized
from fastmtt.errors import FastmttError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flowers(root: Path, **how: object) -> Path:
    return class_tree(
        root / "flowers", ("train", "test"), ("rose", "aster"), each=3, size=16, **how
    )


def values(data: object, images: torch.Tensor) -> torch.Tensor:
    return (data.space.to_pixels(images) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("suffix", [".png", ".JPEG", ".bmp", ".webp", ".tiff", ".ppm", ".gif"])
def test_any_format_pillow_reads(tmp_path: Path, suffix: str) -> None:
    root = flowers(tmp_path, suffix=suffix)
    data = load("folder", root, progress=False)
    assert data.name == "folder/flowers/16" and data.classes == ("aster", "rose")
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(
        values(data, data.test_images)[4], pixels(root / "test" / "rose" / f"test_1{suffix}")
    )


def test_it_is_normalised_by_its_training_images(tmp_path: Path) -> None:
    root = flowers(tmp_path, suffix=".png")
    files = sorted((root / "train").glob("*/*"))
    stack = np.stack([np.array(Image.open(file)) for file in files]) / 255
    data = load("folder", root, progress=False, held_out=1)
    assert isinstance(data.space, Normalised)
    np.testing.assert_allclose(data.space.mean, stack.mean(axis=(0, 1, 2)), rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(data.space.std, stack.std(axis=(0, 1, 2)), rtol=0, atol=5.1e-5)


def test_val_serves_as_test_and_stray_files_do_not_count(tmp_path: Path) -> None:
    root = class_tree(tmp_path, ("train", "val"), ("a", "b"), size=8, suffix=".png")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "a" / "._0.png").write_text("what macOS leaves")
    image(root / "train" / "a" / "deep" / "er" / "x.PNG", 0, 5, 8)
    data = load("folder", root, progress=False)
    assert data.train_labels.tolist() == [0, 0, 1] and data.test_labels.tolist() == [0, 1]


def test_gray_images_have_one_channel_unless_one_has_colour(tmp_path: Path) -> None:
    root = flowers(tmp_path, suffix=".png")
    for file in root.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    data = load("folder", root, progress=False)
    assert data.image_shape == (1, 16, 16)
    first = root / "train" / "aster" / "train_0.png"
    assert torch.equal(values(data, data.train_images)[0], pixels(first)[:1])
    image(root / "test" / "rose" / "test_0.png", 1, 1, 16)
    data = load("folder", root, progress=False)
    assert data.image_shape == (3, 16, 16)
    assert torch.equal(values(data, data.train_images)[0], pixels(first))


def test_images_of_unlike_size_want_res(tmp_path: Path) -> None:
    root = flowers(tmp_path, suffix=".png")
    Image.fromarray(picture(0, 0, 40)[:30]).save(root / "train" / "rose" / "train_1.png")
    with pytest.raises(FastmttError, match=r"is 16x16 and .*rose/train_1\.png 30x40.* give res"):
        load("folder", root, progress=False)
    data = load("folder", root, progress=False, res=12)
    assert data.image_shape == (3, 12, 12) and data.name == "folder/flowers/12"


def test_resizing_is_bilinear_without_antialiasing() -> None:
    """Sampled at ((i + 1/2) * scale - 1/2), weights by distance, worked out here in NumPy."""
    small = torch.from_numpy(picture(3, 4, 30)[:, :20]).permute(2, 0, 1)

    def along(length: int, res: int) -> np.ndarray:
        at = np.clip((np.arange(res) + 0.5) * length / res - 0.5, 0, length - 1)
        low = np.minimum(np.floor(at).astype(int), length - 2)
        weights = np.zeros((res, length))
        weights[np.arange(res), low] = 1 - (at - low)
        weights[np.arange(res), low + 1] += at - low
        return weights

    for res in (7, 64):
        exact = along(30, res) @ small.numpy().astype(np.float64) @ along(20, res).T
        assert np.abs(resized(small, res).numpy() - exact).max() <= 0.5 + 1e-4
    assert torch.equal(resized(small[:, :20], 20), small[:, :20])


def test_the_second_reading_takes_the_cache_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flowers(tmp_path, suffix=".png")
    first = load("folder", root, progress=False)
    opened: list[str] = []
    real = Image.open

    def counting(file: str, *how: object, **more: object) -> Image.Image:
        opened.append(file)
        return real(file, *how, **more)

    monkeypatch.setattr(Image, "open", counting)
    again = load("folder", root, progress=False)
    assert not opened and torch.equal(first.train_images, again.train_images)
    assert again.classes == first.classes and again.name == first.name
    load("folder", root, progress=False, res=8)
    assert opened and len(list(cache.iterdir())) == 2
    changed = image(root / "train" / "rose" / "train_0.png", 9, 9, 16)
    data = load("folder", root, progress=False)
    assert torch.equal(values(data, data.train_images)[3], pixels(changed))
    before = len(opened)
    os.utime(changed, ns=(1, 1))  # the same size, another time of change
    load("folder", root, progress=False)
    assert len(opened) > before
    changed.unlink()
    assert len(load("folder", root, progress=False).train_images) == 5


def test_many_images_keep_their_order(tmp_path: Path) -> None:
    root = class_tree(tmp_path, ("train", "test"), ("a", "b"), each=150, size=8, suffix=".png")
    data = load("folder", root, progress=False)
    files = sorted((root / "train" / "a").iterdir()) + sorted((root / "train" / "b").iterdir())
    expected = torch.stack([pixels(file) for file in files])
    assert torch.equal(values(data, data.train_images), expected)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_foreign_images_are_named(tmp_path: Path, content: bytes) -> None:
    root = flowers(tmp_path, suffix=".png")
    (root / "test" / "rose" / "test_2.png").write_bytes(content)
    for res in (None, 8):
        with pytest.raises(FastmttError, match=r"rose/test_2\.png is (no image|damaged)") as no:
            load("folder", root, progress=False, res=res)
        assert "\n" not in str(no.value)


@pytest.mark.parametrize(("lost", "sentence"), [(300, "is no image"), (40, "is damaged")])
def test_truncated_images_are_named(tmp_path: Path, cache: Path, lost: int, sentence: str) -> None:
    root = flowers(tmp_path, suffix=".JPEG")
    file = image(root / "train" / "aster" / "train_1.JPEG", 1, 1, 16)
    file.write_bytes(file.read_bytes()[:-lost])
    with pytest.raises(FastmttError, match=rf"aster/train_1\.JPEG {sentence}"):
        load("folder", root, progress=False)
    assert not cache.exists()


def test_deep_and_postscript_images_are_refused(tmp_path: Path) -> None:
    root = flowers(tmp_path, suffix=".png")
    file = root / "train" / "aster" / "train_1.png"
    Image.fromarray(np.full((16, 16), 40_000, dtype=np.uint16)).save(file)
    with pytest.raises(FastmttError, match=r"train_1\.png has more than 8 bits a channel"):
        load("folder", root, progress=False)
    Image.fromarray(picture(0, 0, 16)).save(file, "EPS")
    with pytest.raises(FastmttError, match=r"train_1\.png is no image"):
        load("folder", root, progress=False)


def test_missing_and_differing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FastmttError, match=r"wanted train and test or val in it, there is no such"):
        load("folder", tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FastmttError, match="it is a file"):
        load("folder", tmp_path / "file")
    root = flowers(tmp_path, suffix=".png")
    os.rename(root / "train", root / "training")
    with pytest.raises(FastmttError, match="it holds test, training; point data_path"):
        load("folder", root)
    os.rename(root / "training", root / "train")
    (root / "test" / "tulip").mkdir()
    with pytest.raises(
        FastmttError, match=r"test and .*train differ: 1 class folder.*, tulip, are"
    ):
        load("folder", root)
    (root / "train" / "tulip").mkdir()
    (root / "train" / "tulip" / "a.txt").write_text("x")
    with pytest.raises(FastmttError, match=r"train/tulip has no image: it holds a\.txt"):
        load("folder", root)
    empty = tmp_path / "empty"
    (empty / "train").mkdir(parents=True)
    (empty / "val").mkdir()
    with pytest.raises(FastmttError, match=r"has no class folders: wanted train/<class>/<images>"):
        load("folder", empty)


def test_images_all_alike_cannot_be_normalised(tmp_path: Path) -> None:
    root = flowers(tmp_path, suffix=".png")
    for file in (root / "train").rglob("*.png"):
        Image.new("RGB", (16, 16), (10, 20, 30)).save(file)
    with pytest.raises(FastmttError, match="channel . of all training images is 0.* everywhere"):
        load("folder", root, progress=False)


def test_what_cannot_fit_in_memory_is_said_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = flowers(tmp_path, suffix=".png")
    monkeypatch.setattr("fastmtt.data.memory.available", lambda: 4000)
    with pytest.raises(FastmttError, match=r"6 of 3x16x16 would take 0\.0 GB .* or a lower res"):
        load("folder", root, progress=False)
