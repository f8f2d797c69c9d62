"""Training images kept out of training."""

from pathlib import Path

import pytest
import torch

from fastmtt.data import load
from fastmtt.data.held_out import hold_out
from fastmtt.data.raw import RawImages
from fastmtt.draws import stream
from fastmtt.errors import FastmttError


def numbered(count: int) -> RawImages:
    """Images that say their own place; labels 0, 1, 2, 0, 1, 2, ..."""
    place = torch.arange(count)
    images = torch.stack([place // 256, place % 256], 1).to(torch.uint8)[:, :, None, None]
    return RawImages(images, place % 3, images[:3], place[:3] % 3, ("a", "b", "c"), "made")


def places(images: torch.Tensor) -> list[int]:
    return (images[:, 0].int() * 256 + images[:, 1].int()).flatten().tolist()


def test_each_classs_draw_depends_on_its_label_alone() -> None:
    count = 15_000  # more than are moved at a time
    (images, labels), (held, held_labels) = hold_out(numbered(count), 40)
    chosen = places(held)
    expected = [
        3 * place + label
        for label in range(3)
        for place in stream(0, "held out", label).permutation(count // 3)[:40].tolist()
    ]
    assert chosen == sorted(expected) and held_labels.bincount().tolist() == [40, 40, 40]
    left = places(images)
    assert left == [place for place in range(count) if place not in set(chosen)]
    for where, of in ((left, labels), (chosen, held_labels)):
        assert [place % 3 for place in where] == of.tolist()


def test_none_held_out_changes_nothing() -> None:
    raw = numbered(30)
    (images, labels), (held, held_labels) = hold_out(raw, 0)
    assert torch.equal(images, raw.train_images) and torch.equal(labels, raw.train_labels)
    assert held.shape == (0, 2, 1, 1) and held_labels.shape == (0,)


@pytest.mark.parametrize("zca", [False, True])
def test_space_and_test_images_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zca: bool
) -> None:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path))
    whole = load("digits", "", zca=zca, progress=False)
    data = load("digits", "", zca=zca, held_out=10, progress=False)
    assert data.held_out == 10 and data.held_out_labels.bincount().tolist() == [10] * 10
    assert len(data.train_labels) == len(data.train_images) == 1247
    assert data.space.describe() == whole.space.describe() and data.name == whole.name
    assert torch.equal(data.test_images, whole.test_images)

    def rows(*images: torch.Tensor) -> list[bytes]:
        return sorted(row.numpy().tobytes() for row in torch.cat(images))

    assert rows(data.train_images, data.held_out_images) == rows(whole.train_images)


def test_more_than_a_class_has_is_refused() -> None:
    load("digits", "", held_out=129)
    with pytest.raises(
        FastmttError,
        match=r"held_out is 130 and class '8' has 130 training images, wanted one left.*lower",
    ):
        load("digits", "", held_out=130)
