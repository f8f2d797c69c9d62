"""The configuration's data, on the configured device."""

from pathlib import Path

import pytest
import torch
from tree_maker import class_tree

from fastmtt.data import Images
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.options import BaseConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))


def test_subset_res_and_held_out_reach_the_data(tmp_path: Path) -> None:
    wnids = (
        "n02206856 n12057211 n07753592 n07749582 n12144580 n04146614 n03530642 n02129165 "
        "n01773157 n01531178"
    )
    class_tree(tmp_path, ("train", "val"), wnids.split(), each=3, size=20)
    config = BaseConfig(
        **{"dataset": "ImageNet", "data_path": str(tmp_path), "subset": "imageyellow"},
        **{"res": 16, "held_out": 1, "device": "cpu"},
    )
    data = load_data(config)
    assert data.name == "ImageNet/imageyellow/16" and data.image_shape == (3, 16, 16)
    assert data.classes[7:] == ("lion", "black and gold garden spider", "goldfinch")
    assert len(data.train_images) == 20 and len(data.held_out_images) == 10
    assert data.held_out_labels.tolist() == list(range(10)) and data.held_out == 1


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FastmttError, match="device is cuda, but torch finds no GPU here"):
        load_data(BaseConfig(dataset="digits", device="cuda"))


def test_a_gpu_beyond_the_last_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for number in (2, 99999):
        with pytest.raises(FastmttError, match=f"device is cuda:{number}, but the last .* cuda:1;"):
            load_data(BaseConfig(dataset="digits", device=f"cuda:{number}"))


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "fp32", None])
def test_bf16_that_gains_nothing_is_said(precision, there, monkeypatch, capsys):
    monkeypatch.setattr("fastmtt.device.instruction_sets", lambda: {"avx512_bf16": there})
    load_data(BaseConfig(dataset="digits", device="cpu", precision=precision))
    said = "no bfloat16 instructions" in capsys.readouterr().err
    assert said == (precision == "bf16" and not there)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
@pytest.mark.parametrize("zca", [False, True])
def test_bytes_on_a_gpu_read_as_the_cpus_floats(monkeypatch: pytest.MonkeyPatch, zca: bool) -> None:
    config = BaseConfig(dataset="digits", device="cuda", zca=zca, held_out=2)
    whole = load_data(config)
    assert isinstance(whole.train_images, torch.Tensor) and whole.train_images.is_cuda
    monkeypatch.setattr("fastmtt.device.available", lambda: 0)
    kept = load_data(config)
    for split in ("train", "test", "held_out"):
        images, floats = (getattr(data, f"{split}_images") for data in (kept, whole))
        assert isinstance(images, Images) and images.device.type == "cuda"
        assert getattr(kept, f"{split}_labels").is_cuda
        if zca:  # another device's matrix product
            torch.testing.assert_close(images.whole(), floats, rtol=0, atol=1e-5)
        else:
            assert torch.equal(images.whole(), floats)


@pytest.mark.parametrize(("name", "number"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_becomes_the_current_one(monkeypatch, name, number):
    """Before anything goes there; torch's own look at the number is kept."""

    class Reached(Exception):
        pass

    def reached(device):
        raise Reached(torch.cuda._utils._get_device_index(device))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", reached)
    with pytest.raises(Reached) as found:
        load_data(BaseConfig(dataset="digits", device=name))
    assert found.value.args == (number,)
