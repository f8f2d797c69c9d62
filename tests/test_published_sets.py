"""Distilled sets in the published layouts, written here as the published programs write them."""

import os
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from fastmtt.data import load
from fastmtt.errors import FastmttError
from fastmtt.published_sets import load_published

HARD = torch.arange(10).repeat_interleave(2)
LR = torch.tensor(0.02)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


IMAGES, LOGITS = normal(20, 1, 8, 8), normal(20, 10)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


@pytest.fixture
def read(tmp_path, digits):
    """Save images, labels and learning rate, those that are given, and read them."""

    def read(images, labels=None, rate=None, lr=None, factor=1):
        files: list[Path | None] = []
        names = ("images_best.pt", "labels_best.pt", "lr_best.pt")
        for name, content in zip(names, (images, labels, rate), strict=True):
            files.append(None if content is None else tmp_path / name)
            if content is not None:
                torch.save(content, tmp_path / name)
        return load_published(*files, lr, dataset=digits, factor=factor)

    return read


@pytest.fixture
def refusal(read):
    def refusal(*contents, lr=None, factor=1) -> str:
        with pytest.raises(FastmttError) as stop:
            read(*contents, lr=lr, factor=factor)
        assert "\n" not in str(stop.value)
        return str(stop.value)

    return refusal


def test_mtt_saves_images_and_labels_and_no_learning_rate(read, refusal):
    found = read(IMAGES, HARD, lr=0.02)
    assert torch.equal(found.images, IMAGES) and torch.equal(found.targets, HARD)
    assert torch.equal(found.lr, LR)
    assert "give --lr" in refusal(IMAGES, HARD)


def test_a_learning_rate_that_is_given_wins_over_the_file(read):
    assert float(read(IMAGES, HARD, LR, lr=0.5).lr) == 0.5


def test_datm_saves_logits_and_a_learning_rate(read):
    found = read(IMAGES, LOGITS, LR)
    assert torch.equal(found.labels, LOGITS) and torch.equal(found.lr, LR)
    assert torch.equal(found.targets, LOGITS.softmax(1))


def test_idc_saves_pixels_with_their_labels(read, refusal, digits, capsys):
    pixels = digits.space.to_pixels(digits.test_images[:20])
    found = read([pixels, digits.test_labels[:20]], lr=0.01)
    assert torch.allclose(found.images, digits.test_images[:20], atol=1e-6)
    assert torch.equal(found.labels, digits.test_labels[:20])
    assert "decoded by factor 1" in capsys.readouterr().err
    assert "leave out label_dir" in refusal([pixels, HARD], HARD, lr=0.01)
    assert "[20, 3, 8, 8]" in refusal([pixels.expand(-1, 3, -1, -1).clone(), HARD], lr=0.01)


def test_idcs_cells_become_training_images_by_the_factor(read, refusal, digits):
    pixels = digits.space.to_pixels(digits.test_images[:4])
    found = read([pixels, digits.test_labels[:4]], lr=0.01, factor=2)
    assert torch.equal(found.labels, torch.cat([digits.test_labels[:4]] * 4))
    quarter = pixels[:, :, :4, :4]  # the cell at the top left, of all images first
    large = torch.nn.functional.interpolate(quarter, size=8, mode="bilinear", align_corners=False)
    assert torch.allclose(found.images[:4], digits.space.transform(large), atol=1e-6)
    assert "leave it out" in refusal(IMAGES, HARD, LR, factor=2)


def test_without_labels_images_are_taken_class_by_class(read, refusal, capsys):
    assert torch.equal(read(IMAGES, lr=0.02).labels, HARD)
    assert "class by class" in capsys.readouterr().err
    assert "no multiple of 10 classes" in refusal(IMAGES[:19], lr=0.02)


def test_parameters_and_other_precisions_are_brought_to_ours(read, capsys):
    found = read(Parameter(IMAGES.double()), Parameter(LOGITS.half()), Parameter(LR.double()))
    assert found.images.dtype == found.labels.dtype == found.lr.dtype == torch.float32
    assert not (found.images.requires_grad or found.labels.requires_grad)
    assert torch.equal(found.images, IMAGES) and torch.equal(found.labels, LOGITS.half().float())
    said = capsys.readouterr().err
    assert "torch.float64 brought to torch.float32" in said and "torch.float16" in said
    assert torch.equal(read(IMAGES, HARD.int(), 0.02).labels, HARD)


def test_the_learning_rate_is_one_number_of_any_kind(read, refusal):
    for rate in (LR[None], 0.02):
        assert torch.equal(read(IMAGES, HARD, rate).lr, LR)
    assert read(IMAGES, HARD, 1).lr == 1
    for rate in (torch.zeros(2), True, "0.02", [0.02], {"lr": 0.02}):
        assert "lr_best.pt" in refusal(IMAGES, HARD, rate)


@pytest.mark.parametrize("lr", [0.0, -0.01, float("nan"), float("inf")])
def test_rates_that_train_nothing_are_refused(refusal, lr):
    assert "positive lr" in refusal(IMAGES, HARD, torch.tensor(lr))


NAN = IMAGES.clone()
NAN[3, 0, 2, 2] = float("nan")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (NAN, HARD, "finite float32 images"),
        (IMAGES.mul(100).byte(), HARD, "torch.uint8"),
        (IMAGES[:, 0], HARD, "[20, 8, 8]"),
        (IMAGES[:0], HARD[:0], "[0, 1, 8, 8]"),
        (IMAGES, HARD[:19], "labels [19]"),
        (IMAGES, HARD - 1, "labels torch.int64 from -1"),
        (IMAGES, HARD.bool(), "torch.bool"),
        (IMAGES, HARD.float(), "[n,classes]"),
        (IMAGES, LOGITS.log(), "finite float32 logits"),
        (IMAGES, LOGITS[:, :0], "[20, 0]"),
        (IMAGES, [HARD], "holds a list of 1"),
        ({"images": IMAGES}, HARD, "holds a dict of 1"),
        ([IMAGES, HARD, HARD], None, "holds a list of 3"),
        ([IMAGES.byte(), HARD], None, "torch.uint8"),
        (IMAGES.to_sparse(), HARD, "sparse"),
        (torch.zeros(1).expand(10**6, 1, 8, 8), HARD, "larger than the file"),
    ],
)
def test_what_is_no_distilled_set_is_refused_in_a_sentence(refusal, images, labels, words):
    assert words in refusal(images, labels, lr=0.02)


class Command:
    """Unpickled freely, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


def test_a_pickle_with_code_in_it_does_not_run(refusal, tmp_path):
    bad = Command(tmp_path / "trace")
    for contents in ((bad, HARD, LR), (IMAGES, bad, LR), (IMAGES, HARD, bad), ([bad], HARD, LR)):
        assert "nothing in it was run" in refusal(*contents)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_truncated_files_are_refused(tmp_path, digits, kept):
    file = tmp_path / "images_best.pt"
    torch.save(IMAGES, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(FastmttError, match=r"images_best\.pt"):
        load_published(file, lr=0.02, dataset=digits)


def test_files_that_are_not_there_are_named(tmp_path, digits):
    with pytest.raises(FastmttError, match=r"images_best\.pt cannot be read"):
        load_published(tmp_path / "images_best.pt", lr=0.02, dataset=digits)


def test_the_format_before_pytorch_1_6_is_read(tmp_path, digits):
    file = tmp_path / "images_best.pt"
    torch.save(IMAGES, file, _use_new_zipfile_serialization=False)
    assert torch.equal(load_published(file, lr=0.02, dataset=digits).images, IMAGES)
