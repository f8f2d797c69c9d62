"""torchvision's sets from small files in their publishers' formats, read by torchvision itself."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from fastmtt.data import load
from fastmtt.errors import FastmttError

RNG = np.random.default_rng


def idx(path: Path, array: np.ndarray) -> None:
    """Write uint8 in LeCun's IDX format: two zeros, type 8, dimensions, sizes, bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


def make_mnist(root: Path, name: str) -> dict[str, np.ndarray]:
    content = {}
    for split, count in (("train", 20), ("t10k", 10)):
        images = RNG(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        content[split] = images
        idx(root / name / "raw" / f"{split}-images-idx3-ubyte", images)
        idx(
            root / name / "raw" / f"{split}-labels-idx1-ubyte",
            np.arange(count, dtype=np.uint8) % 10,
        )
    return content


@pytest.mark.parametrize(
    ("name", "mean", "std"), [("MNIST", 0.1307, 0.3081), ("FashionMNIST", 0.2861, 0.3530)]
)
def test_mnist_and_fashion_mnist(tmp_path: Path, name: str, mean: float, std: float) -> None:
    content = make_mnist(tmp_path, name)
    data = load(name, tmp_path)
    assert data.name == name and data.image_shape == (1, 28, 28)
    assert len(data.train_images) == 20 and len(data.test_images) == 10 and len(data.classes) == 10
    assert data.train_labels.tolist() == [*range(10)] * 2
    assert data.held_out == 0 and data.held_out_images.shape == (0, 1, 28, 28)
    for images, split in ((data.train_images, "train"), (data.test_images, "t10k")):
        expected = (content[split].astype(np.float64) / 255 - mean) / std
        np.testing.assert_allclose(images[:, 0].numpy(), expected, rtol=0, atol=1e-6)


def test_damaged_mnist_files_are_refused(tmp_path: Path) -> None:
    sentence = r"no whole copy of MNIST lies under .*MNIST/raw; add --download true"
    with pytest.raises(FastmttError, match=sentence):
        load("MNIST", tmp_path)
    make_mnist(tmp_path, "MNIST")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    for length in (0, 3, 10, 16, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(FastmttError, match=sentence):
            load("MNIST", tmp_path)
    file.write_bytes(whole)
    idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.full(20, 10, dtype=np.uint8))
    with pytest.raises(FastmttError, match="MNIST in .* has training labels outside 0 to 9"):
        load("MNIST", tmp_path)
    idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", np.full(20, 9, dtype=np.uint8))
    with pytest.raises(FastmttError, match="has no training image of class '0 - zero'"):
        load("MNIST", tmp_path)


def test_files_of_unlike_length_are_refused(tmp_path: Path) -> None:
    make_mnist(tmp_path, "MNIST")
    labels = np.arange(19, dtype=np.uint8) % 10
    idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", labels)
    with pytest.raises(FastmttError, match="MNIST in .* has 20 training images and 19 labels"):
        load("MNIST", tmp_path)


def make_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """MATLAB files X [32,32,3,n] and y [n,1], where 10 stands for the digit 0."""
    known = {}
    for split, count in (("train", 20), ("test", 10)):
        x = RNG(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        y = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        file = root / f"{split}_32x32.mat"
        savemat(file, {"X": x, "y": y})
        known[split] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
        if split == "train":
            train = x
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", known)
    return train


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = make_svhn(tmp_path, monkeypatch)
    data = load("SVHN", tmp_path)
    assert data.image_shape == (3, 32, 32) and data.classes == tuple("0123456789")
    assert data.train_labels.tolist() == [*range(1, 10), 0] * 2
    mean, std = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
    for c in range(3):
        expected = (train[:, :, c, 13] / 255 - mean[c]) / std[c]
        np.testing.assert_allclose(data.train_images[13, c].numpy(), expected, rtol=0, atol=1e-6)
    (tmp_path / "test_32x32.mat").write_bytes(b"")
    with pytest.raises(FastmttError, match="no whole copy of SVHN"):
        load("SVHN", tmp_path)


def make_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    folder = root / "cifar-100-python"
    folder.mkdir()

    def write(name: str, value: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(value))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    known = torchvision.datasets.CIFAR100
    pixels = RNG(0).integers(0, 256, (200, 3072), dtype=np.uint8)
    labels = {"fine_labels": [*range(100)] * 2, "coarse_labels": [0] * 200}
    monkeypatch.setattr(
        known, "train_list", [["train", write("train", {"data": pixels, **labels})]]
    )
    labels = {"fine_labels": [*range(100)], "coarse_labels": [0] * 100}
    monkeypatch.setattr(
        known, "test_list", [["test", write("test", {"data": pixels[:100], **labels})]]
    )
    names = {"fine_label_names": [f"fine {label}" for label in range(100)]}
    meta = {"filename": "meta", "key": "fine_label_names", "md5": write("meta", names)}
    monkeypatch.setattr(known, "meta", meta)
    return pixels


def test_cifar100_has_cifar10s_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_cifar100(tmp_path, monkeypatch)
    data = load("CIFAR100", tmp_path)
    assert data.classes[42] == "fine 42" and data.train_labels[142] == 42
    assert data.train_images.shape == (200, 3, 32, 32) and len(data.test_images) == 100
    red = (pixels[142].reshape(3, 32, 32)[0] / 255 - 0.4914) / 0.2023
    np.testing.assert_allclose(data.train_images[142, 0].numpy(), red, rtol=0, atol=1e-6)


def test_a_size_of_another_set_is_ignored_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cifar100(tmp_path, monkeypatch)
    with pytest.warns(UserWarning, match="res 128 is ignored: CIFAR100's images are 32x32"):
        data = load("CIFAR100", tmp_path, res=128)
    assert data.image_shape == (3, 32, 32) and data.name == "CIFAR100"


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "SVHN", "CIFAR100"])
def test_a_failed_download_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def offline(self: Any) -> None:
        raise OSError("no\nroute")

    monkeypatch.setattr(getattr(torchvision.datasets, name), "download", offline)
    with pytest.raises(FastmttError, match=r"could not be downloaded to .* \(no route\); try"):
        load(name, tmp_path, download=True)
