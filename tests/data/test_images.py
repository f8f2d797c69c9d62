"""Bytes until used: the same bits as the whole tensor, whatever is asked for together."""

from pathlib import Path

import pytest
import torch

from fastmtt.data import Images, Whitened, load
from fastmtt.data.spaces import Normalised, Space
from fastmtt.data.zca import fit_zca
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, accuracy, train


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))


def raw(count: int = 300) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


def spaces() -> list[Space]:
    constants = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    return [Normalised(*constants), fit_zca(raw(), 255, show=False)]


@pytest.mark.parametrize("kind", [0, 1])
def test_every_way_of_asking_gives_the_same_bits(kind: int) -> None:
    images = Images(raw(), spaces()[kind], 255)
    whole = images.whole()
    assert whole.shape == images.shape == (300, 3, 16, 16) and len(images) == 300
    assert whole.dtype == images.dtype == torch.float32 and images.device.type == "cpu"
    generator = torch.Generator().manual_seed(1)
    for shape in ((1,), (7,), (128,), (200,), (2, 5), (3, 1, 129)):
        rows = torch.randint(0, 300, shape, generator=generator)
        assert torch.equal(images[rows], whole[rows])
    assert torch.equal(images[17:170], whole[17:170])
    assert images[:0].shape == (0, 3, 16, 16)
    assert torch.equal(torch.cat(list(images.split(37))), whole)
    assert [len(part) for part in images.split(128)] == [128, 128, 44]
    assert torch.equal(images.to("cpu").whole(), whole)
    none = Images(raw()[:0], images.space, 255)
    assert none.whole().shape == (0, 3, 16, 16)
    assert [part.shape for part in none.split(9)] == [part.shape for part in whole[:0].split(9)]


def test_the_bits_are_the_textbooks() -> None:
    images, pixels = Images(raw(), spaces()[0], 255), raw().float() / 255
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    std = torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None]
    assert torch.equal(images.whole(), (pixels - mean) / std)


@pytest.mark.parametrize("zca", [False, True])
def test_little_memory_keeps_bytes_and_changes_no_bit(zca: bool) -> None:
    plenty = load("digits", "", zca=zca, held_out=3, progress=False)
    floats = 4 * 64 * 1797  # bytes of all images, training, test and held out
    enough = load("digits", "", zca=zca, held_out=3, progress=False, memory=2 * floats)
    little = load("digits", "", zca=zca, held_out=3, progress=False, memory=2 * floats - 1)
    assert isinstance(enough.train_images, torch.Tensor)
    assert isinstance(little.space, Whitened) == zca
    for split in ("train", "test", "held_out"):
        tensor, kept = (getattr(data, f"{split}_images") for data in (plenty, little))
        assert isinstance(tensor, torch.Tensor) and isinstance(kept, Images)
        assert kept.raw.dtype == torch.uint8 and torch.equal(kept.whole(), tensor)
        labels = (getattr(data, f"{split}_labels") for data in (plenty, little))
        assert torch.equal(*labels)
    assert little.image_shape == plenty.image_shape


def test_students_train_on_either() -> None:
    """Several students' rows [S,b] at once."""
    little, plenty = (load("digits", "", memory=memory) for memory in (0, None))
    rows = torch.randint(0, 1347, (3, 20), generator=torch.Generator().manual_seed(0))
    for data in (little, plenty):
        assert Examples(data.train_images, data.train_labels).image_shape == (1, 8, 8)
    (x, y), (v, w) = (
        Examples(data.train_images, data.train_labels).pick(rows) for data in (little, plenty)
    )
    assert x.shape == (3, 20, 1, 8, 8) and torch.equal(x, v) and torch.equal(y, w)


def test_training_and_testing_on_either_give_the_same_bits() -> None:
    found = []
    for memory in (0, None):
        data = load("digits", "", memory=memory)
        torch.manual_seed(0)
        network = make_network("ConvNetW32", image_shape=data.image_shape, classes=10)
        student = make_student(network, data.image_shape)
        start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()[None]
        examples = Examples(data.train_images, data.train_labels)
        recipe = Recipe(epochs=1, batch_size=256, lr=0.01)
        theta = train(student, start, examples, recipe, seed=0, what="expert", members=[0])
        found.append((theta, accuracy(student, theta, data.test_images, data.test_labels)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
