"""Tiny ImageNet in each layout it is found in, 200 classes of two small JPEGs."""

import shutil
from pathlib import Path

import pytest
import torch
from tree_maker import image, pixels, tiny_train, wnids

from fastmtt.data import DataSet, load
from fastmtt.errors import FastmttError

CLASSES = wnids(200)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("train")
    tiny_train(root, CLASSES)
    return root / "train"


@pytest.fixture
def root(tmp_path: Path, train: Path) -> Path:
    """The archive as it unpacks, without its validation images."""
    root = tmp_path / "tiny-imagenet-200"
    root.mkdir()
    (root / "train").symlink_to(train)
    (root / "wnids.txt").write_text("\n".join(reversed(CLASSES)))
    words = [f"{wnid}\tthing {label}, synonym" for label, wnid in enumerate(CLASSES[:199])]
    (root / "words.txt").write_text("\n".join(["n00000001\tnot in it", *words]))
    (root / "test" / "images").mkdir(parents=True)
    return root


def raw_validation(root: Path) -> list[int]:
    """val/images flat, in another order than the classes', and val_annotations.txt."""
    labels = [(7 * i) % 200 for i in range(200)]
    lines = []
    for i, label in enumerate(labels):
        image(root / "val" / "images" / f"val_{i}.JPEG", label, 1)
        lines.append(f"val_{i}.JPEG\t{CLASSES[label]}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return labels


def expected(file: Path) -> torch.Tensor:
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (pixels(file) / 255 - mean) / std


def check_train(data: DataSet, root: Path) -> None:
    assert data.name == "Tiny" and data.image_shape == (3, 64, 64) and len(data.classes) == 200
    assert data.train_labels.tolist() == list(range(200))
    assert data.classes[3] == "thing 3, synonym" and data.classes[199] == CLASSES[199]
    file = root / "train" / CLASSES[150] / "images" / f"{CLASSES[150]}_0.JPEG"
    torch.testing.assert_close(data.train_images[150], expected(file), rtol=0, atol=1e-6)


@pytest.mark.parametrize("above", [False, True])
def test_as_the_archive_unpacks(root: Path, above: bool) -> None:
    labels = raw_validation(root)
    data = load("Tiny", root.parent if above else root, progress=False)
    check_train(data, root)
    assert data.test_labels.tolist() == labels
    file = root / "val" / "images" / "val_99.JPEG"
    torch.testing.assert_close(data.test_images[99], expected(file), rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["val/images/{}", "val/{}", "val/{}/images"])
def test_rearranged(root: Path, where: str) -> None:
    for label, wnid in enumerate(CLASSES):
        image(root / where.format(wnid) / "val_0.JPEG", label, 1)
    (root / "val" / "val_annotations.txt").write_text("left over from before")
    data = load("Tiny", root, progress=False)
    check_train(data, root)
    assert data.test_labels.tolist() == list(range(200))
    file = root / where.format(CLASSES[42]) / "val_0.JPEG"
    torch.testing.assert_close(data.test_images[42], expected(file), rtol=0, atol=1e-6)


def test_what_is_missing_or_wrong_is_named(root: Path, tmp_path: Path) -> None:
    def refused(sentence: str) -> None:
        with pytest.raises(FastmttError, match=sentence) as no:
            load("Tiny", root, progress=False)
        assert "\n" not in str(no.value)

    refused(r"holds no data set of folders: wanted train and val in it, it holds test, train")
    raw_validation(root)
    table = root / "val" / "val_annotations.txt"
    whole = table.read_text()
    table.write_text(whole.replace(f"\t{CLASSES[7]}\t", "\tn999\t"))
    refused(r"line 2 of .*val_annotations\.txt is 'val_1.*n999.*wanted a file and one of the 200")
    table.write_text("\n".join(whole.splitlines()[:-1]))
    refused(rf"names no image of class {CLASSES[193]}")
    table.write_text(whole.replace("val_5.JPEG", "../../val_5000.JPEG"))
    refused(r"val/images/val_5000\.JPEG cannot be read \(No such file")
    table.unlink()
    refused(r"val/images has no class folders and .*val_annotations\.txt cannot be read")
    shutil.rmtree(root / "val")
    image(root / "val" / CLASSES[0] / "x.JPEG", 0, 0)
    refused(r"train and .*val differ: 199 class folder")
    (root / "train").unlink()
    tiny_train(root, CLASSES[:3])
    refused(r"train has 3 class folders, Tiny ImageNet 200")


def test_an_image_of_another_size_is_resized_not_refused(root: Path) -> None:
    """Some copies were re-encoded at other sizes; the programs read 64x64."""
    raw_validation(root)
    image(root / "val" / "images" / "val_3.JPEG", 3, 3, size=70)
    assert load("Tiny", root, progress=False).test_images.shape == (200, 3, 64, 64)
