"""Data sets by name: the real digits and CIFAR-10, small copies of published layouts, refusals."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from archive_maker import save, small_cifar

from fastmtt.data import Normalised, Whitened, load
from fastmtt.errors import FastmttError

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL = SHARED / "cifar10_jpeg.npz"
TINY = SHARED / "tiny_imagenet_25_per_class_jpeg.npz"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_digits_are_whole_disjoint_and_stratified() -> None:
    digits = load("digits", "nowhere", progress=False)
    assert digits.image_shape == (1, 8, 8) and digits.classes == tuple("0123456789")
    assert digits.train_images.shape == (1347, 1, 8, 8) and len(digits.test_images) == 450
    both = torch.cat([digits.train_labels, digits.test_labels]).bincount()
    assert (digits.test_labels.bincount() - both / 4).abs().max() <= 0.5
    pixels = digits.space.to_pixels(torch.cat([digits.train_images, digits.test_images])) * 16
    from sklearn.datasets import load_digits

    def rows(values: np.ndarray) -> list[tuple[int, ...]]:
        return sorted(map(tuple, values.reshape(-1, 64).astype(int)))

    assert rows(pixels.round().numpy()) == rows(load_digits().images)


def test_digits_are_normalised_by_their_training_images() -> None:
    train = load("digits", "nowhere").train_images.double()
    assert abs(train.mean()) < 1e-3 and abs(train.std() - 1) < 1e-3


def test_the_split_of_the_digits_never_changes() -> None:
    digits = load("digits", "nowhere")
    pixels = (digits.space.to_pixels(digits.test_images) * 16).round().to(torch.uint8)
    content = pixels.numpy().tobytes() + digits.test_labels.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "817f3060cb5f382f"


def test_digits_can_be_whitened(cache: Path) -> None:
    plain, white = load("digits", ""), load("digits", "", zca=True, progress=False)
    assert isinstance(plain.space, Normalised) and isinstance(white.space, Whitened)
    torch.testing.assert_close(
        white.space.to_pixels(white.test_images),
        plain.space.to_pixels(plain.test_images),
        rtol=0,
        atol=5e-6,
    )


def test_an_archive_named_cifar10_gets_its_constants(tmp_path: Path, cache: Path) -> None:
    path = save(tmp_path / "a.npz", small_cifar())
    data = load("CIFAR10", path, progress=False)
    assert data.name == "CIFAR10" and "a.npz" in data.source
    assert data.space.describe()["std"] == [0.2023, 0.1994, 0.2010]
    pixels = data.space.to_pixels(data.train_images) * 255
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
    assert data.train_images.dtype == torch.float32 and data.train_images.is_contiguous()
    with pytest.raises(FastmttError, match=r"holds 10 classes of 32x32 images, Tiny wants 200"):
        load("Tiny", path, progress=False)


def make_cifar_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Write a tiny CIFAR-10 in the publisher's layout and teach torchvision its checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    content: dict[str, Any] = {}

    def write(name: str, value: dict[str, Any]) -> str:
        content[name] = value
        data = pickle.dumps(value)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str) -> list[str]:
        pixels = generator.integers(0, 256, (10, 3072), dtype=np.uint8)
        return [name, write(name, {"data": pixels, "labels": list(range(10))})]

    known = torchvision.datasets.CIFAR10
    monkeypatch.setattr(known, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(known, "test_list", [batch("test_batch")])
    names = {"label_names": [f"name {label}" for label in range(10)]}
    meta = {"filename": "batches.meta", "key": "label_names", "md5": write("batches.meta", names)}
    monkeypatch.setattr(known, "meta", meta)
    return content


def test_torchvisions_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = make_cifar_folder(tmp_path, monkeypatch)
    data = load("CIFAR10", tmp_path)
    assert data.train_images.shape == (50, 3, 32, 32) and data.test_images.shape == (10, 3, 32, 32)
    assert data.classes[4] == "name 4" and data.train_labels.tolist() == list(range(10)) * 5
    row = content["data_batch_3"]["data"][7].reshape(3, 32, 32) / 255
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    for channel in range(3):
        np.testing.assert_allclose(
            data.train_images[27, channel].numpy(),
            (row[channel] - mean[channel]) / std[channel],
            rtol=0,
            atol=1e-6,
        )


def test_a_folder_that_is_not_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = r"no whole copy of CIFAR-10 lies under .*cifar-10-batches-py; add --download true"
    with pytest.raises(FastmttError, match=sentence):
        load("CIFAR10", tmp_path)
    make_cifar_folder(tmp_path, monkeypatch)
    damaged = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(FastmttError, match=sentence):
        load("CIFAR10", tmp_path)


def test_a_failed_download_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: Any) -> None:
        raise OSError("no\nroute")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", offline)
    with pytest.raises(FastmttError, match=r"could not be downloaded to .* \(no route\); try"):
        load("CIFAR10", tmp_path, download=True)


@pytest.mark.parametrize(
    ("name", "nearest"), [("cifar", "CIFAR10"), ("Digit", "digits"), ("tiny", "Tiny"), ("qq", "")]
)
def test_unknown_names_list_the_known_ones(name: str, nearest: str) -> None:
    with pytest.raises(FastmttError) as refused:
        load(name, "data")
    hint = f" (nearest: {nearest})" if nearest else ""
    assert str(refused.value) == (
        f"no data set is called '{name}'; known are digits, MNIST, FashionMNIST, SVHN, CIFAR10, "
        f"CIFAR100, Tiny, ImageNet, ImageNet1K, folder{hint}"
    )


@pytest.mark.skipif(not TINY.exists(), reason=f"{TINY.name} is not beside the repository")
def test_the_real_tiny_archive(cache: Path) -> None:
    data = load("Tiny", TINY, progress=False)
    assert data.image_shape == (3, 64, 64) and data.train_labels.bincount().tolist() == [25] * 200
    assert len(data.test_labels) == 2000 and data.classes[0].startswith("goldfish")


@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.name} is not beside the repository")
def test_the_real_cifar10_archive(cache: Path) -> None:
    """Its channel statistics are those its README states."""
    data = load("CIFAR10", REAL, progress=False)
    assert data.train_labels.bincount().tolist() == [5000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    std, mean = torch.std_mean(data.train_images, dim=(0, 2, 3))
    space = data.space
    assert isinstance(space, Normalised)
    for channel, (m, s) in enumerate([(0.4913, 0.2452), (0.4821, 0.2428), (0.4465, 0.2606)]):
        assert float(mean[channel]) * space.std[channel] + space.mean[channel] == pytest.approx(
            m, abs=1e-4
        )
        assert float(std[channel]) * space.std[channel] == pytest.approx(s, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason=f"{REAL.name} is not beside the repository")
def test_zca_of_the_real_cifar10_archive(cache: Path) -> None:
    """Whitened with eps 0.1: variances s / (s + 0.1), all below one, and pixels come back."""
    plain = load("CIFAR10", REAL, progress=False)
    pixels = plain.space.to_pixels(plain.test_images[:500])
    del plain
    white = load("CIFAR10", REAL, zca=True, progress=False)
    back = white.space.to_pixels(white.test_images[:500])
    torch.testing.assert_close(back, pixels, rtol=0, atol=1e-4)
    rows = white.train_images.flatten(1)
    covariance = (rows.T @ rows / (len(rows) - 1)).double()
    values = torch.linalg.eigvalsh(covariance)
    assert values.max() < 1.0 and values.min() > 0.0
    assert rows.mean(dim=0).abs().max() < 1e-3
