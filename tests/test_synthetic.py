"""The synthetic set: how it starts, how it is kept."""

import pytest
import torch

from fastmtt import FastmttError, synthetic
from fastmtt.choices import KeyedChoices
from fastmtt.data import load


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


def test_a_real_start_takes_ipc_training_images_of_each_class_in_order(digits):
    found = synthetic.start(digits, 3, "real", 0.02, KeyedChoices(0))
    assert found.labels.tolist() == [c for c in range(10) for _ in range(3)]
    flat = digits.train_images.flatten(1)
    for image, label in zip(found.images.flatten(1), found.labels, strict=True):
        rows = (flat == image).all(1).nonzero().flatten()
        assert len(rows) > 0 and label in digits.train_labels[rows]
    assert len(found.images.flatten(1).unique(dim=0)) == 30
    assert float(found.lr) == pytest.approx(0.02)


def test_a_noise_start_is_standard_normal(digits):
    found = synthetic.start(digits, 20, "noise", 0.02, KeyedChoices(0))
    assert found.images.shape == (200, 1, 8, 8)
    assert abs(float(found.images.mean())) < 0.05 and abs(float(found.images.std()) - 1) < 0.05


def test_more_images_than_a_class_has_are_refused(digits):
    with pytest.raises(FastmttError, match="lower ipc"):
        synthetic.start(digits, 1000, "real", 0.02, KeyedChoices(0))


def test_save_and_load_give_the_same_bits(digits, tmp_path):
    found = synthetic.start(digits, 1, "real", 0.02, KeyedChoices(0))
    found.save(tmp_path / "set.safetensors", {"network": "ConvNet"})
    again, meta = synthetic.load_synthetic(tmp_path / "set.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in [
            (found.images, again.images),
            (found.labels, again.labels),
            (found.lr, again.lr),
        ]
    )
    assert meta["network"] == "ConvNet"


def test_a_damaged_file_is_refused_by_name(digits, tmp_path):
    path = tmp_path / "set.safetensors"
    synthetic.start(digits, 1, "real", 0.02, KeyedChoices(0)).save(path, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FastmttError, match=r"set\.safetensors"):
        synthetic.load_synthetic(path)
