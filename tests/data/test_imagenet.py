"""ImageNet's subsets and all of it, from small trees in the true layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import Imagenette
from torchvision.models import ResNet18_Weights
from tree_maker import class_tree, image, pixels, thousand_classes, wnids

from fastmtt.data import load
from fastmtt.data.imagenet import _SUBSETS
from fastmtt.errors import FastmttError

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

PUBLISHED = {
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
    "imagenet10": [452, 64, 374, 236, 993, 176, 882, 904, 503, 74],
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))


def test_the_subsets_are_the_published_ones() -> None:
    assert {name: list(rows) for name, rows in _SUBSETS.items()} == PUBLISHED


def test_wnids_belong_to_their_indices() -> None:
    """Index order is wnid order; torchvision knows imagenette's wnids by name."""
    pairs = {index: wnid for rows in _SUBSETS.values() for index, wnid in rows.items()}
    ordered = [pairs[index] for index in sorted(pairs)]
    assert ordered == sorted(ordered) and len(set(ordered)) == len(pairs) == 67
    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    for index, wnid in _SUBSETS["imagenette"].items():
        assert categories[index] in Imagenette._WNID_TO_CLASS[wnid]


def subset_tree(root: Path, subset: str, others: list[str], size: int = 40) -> Path:
    return class_tree(
        root, ("train", "val"), [*_SUBSETS[subset].values(), *others], each=2, size=size
    )


@pytest.mark.parametrize("others", [[], ["n00000001", "n02000000", "n99999999"]])
@pytest.mark.parametrize("below", ["", "ILSVRC/Data/CLS-LOC"])
def test_labels_are_places_in_the_subsets_list(
    tmp_path: Path, others: list[str], below: str
) -> None:
    root = subset_tree(tmp_path / below, "imagefruit", others, size=128)
    data = load("ImageNet", tmp_path, subset="imagefruit", progress=False)
    assert data.name == "ImageNet/imagefruit/128" and data.image_shape == (3, 128, 128)
    assert data.classes[:3] == ("pineapple", "banana", "strawberry")
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    file = root / "train" / "n07753592" / "train_1.JPEG"  # 954, banana: label 1
    torch.testing.assert_close(
        data.train_images[3], (pixels(file) / 255 - MEAN) / STD, rtol=0, atol=1e-6
    )
    file = root / "val" / "n07742313" / "val_0.JPEG"  # 948, Granny Smith: label 9
    torch.testing.assert_close(
        data.test_images[18], (pixels(file) / 255 - MEAN) / STD, rtol=0, atol=1e-6
    )


def test_images_of_any_size_and_mode_come_to_res(tmp_path: Path) -> None:
    """Normalised, then resized as a tensor without antialiasing, to within a byte's rounding."""
    root = subset_tree(tmp_path, "imagenette", [])
    wide = image(root / "train" / "n01440764" / "train_0.JPEG", 0, 0, 90)
    Image.open(wide).crop((0, 0, 90, 50)).save(wide)
    Image.open(wide).convert("L").save(root / "train" / "n01440764" / "train_1.JPEG")
    Image.open(wide).convert("CMYK").save(root / "val" / "n01440764" / "val_0.JPEG")
    data = load("ImageNet", root, res=32, progress=False)
    assert data.name == "ImageNet/imagenette/32" and data.image_shape == (3, 32, 32)
    published = torch.nn.functional.interpolate(
        ((pixels(wide) / 255 - MEAN) / STD)[None], (32, 32), mode="bilinear", antialias=False
    )[0]
    assert ((data.train_images[0] - published) * STD).abs().max() <= 0.5 / 255 + 1e-6
    gray = data.space.to_pixels(data.train_images[1:2])[0]
    torch.testing.assert_close(gray[0], gray[2], rtol=0, atol=1e-6)


def test_cropped_images_keep_their_aspect_ratio(tmp_path: Path) -> None:
    """As Pillow resizes the shorter side with antialiasing, to a byte's rounding on either way."""
    root = subset_tree(tmp_path, "imagenet10", [])
    wide = image(root / "train" / "n02869837" / "train_0.JPEG", 0, 0, 90)
    Image.open(wide).crop((0, 0, 90, 50)).save(wide)
    small = image(root / "val" / "n02869837" / "val_0.JPEG", 0, 0, 30)
    Image.open(small).crop((0, 0, 20, 30)).save(small)
    data = load("ImageNet", root, subset="imagenet10", res=32, crop=True, progress=False)
    assert data.name == "ImageNet/imagenet10/32_crop" and data.image_shape == (3, 32, 32)
    sides = Image.open(wide).resize((57, 32), Image.Resampling.BILINEAR)
    larger = Image.open(small).resize((32, 48), Image.Resampling.BILINEAR)
    for images, middle in (
        (data.train_images, sides.crop((12, 0, 44, 32))),
        (data.test_images, larger.crop((0, 8, 32, 40))),
    ):
        wanted = torch.from_numpy(np.array(middle)).permute(2, 0, 1)
        off = data.space.to_pixels(images[:1])[0] * 255 - wanted
        assert off.abs().max() <= 1 + 1e-3
    stretched = load("ImageNet", root, subset="imagenet10", res=32, progress=False)
    assert not torch.equal(stretched.train_images[0], data.train_images[0])


def test_what_cannot_be_cropped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FastmttError, match="CIFAR10's images are of one size, 32x32; leave crop"):
        load("CIFAR10", tmp_path, crop=True)
    with pytest.raises(FastmttError, match="give res"):
        load("folder", tmp_path, crop=True)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FastmttError) as unknown:
        load("ImageNet", tmp_path, subset="ImageFruits")
    assert str(unknown.value) == (
        "no subset of ImageNet is called 'ImageFruits'; known are imagenette, imagewoof, "
        "imagefruit, imageyellow, imagemeow, imagesquawk, imagenet10 (nearest: imagefruit)"
    )
    with pytest.raises(FastmttError, match="only the first ten are known here"):
        load("ImageNet", tmp_path, subset="imagenet100")
    subset_tree(tmp_path, "imagewoof", [], size=8)
    with pytest.raises(FastmttError, match=r"train lacks 10 of imagemeow's ten class folders"):
        load("ImageNet", tmp_path, subset="imagemeow", progress=False)
    flat = tmp_path / "flat"
    (flat / "train").mkdir(parents=True)
    for wnid in _SUBSETS["imagewoof"].values():
        image(flat / "train" / wnid / "a.JPEG", 0, 0, 8)
    image(flat / "val" / "ILSVRC2012_val_00000001.JPEG", 0, 0, 8)
    with pytest.raises(
        FastmttError, match=r"flat/val lacks 10 .*it holds ILSVRC2012_val_00000001\.JPEG; sort"
    ):
        load("ImageNet", flat, subset="imagewoof", progress=False)


def test_all_of_imagenet_from_images(tmp_path: Path) -> None:
    classes = wnids(1000)
    thousand_classes(tmp_path, classes, image(tmp_path / "0.png", 3, 4))
    file = tmp_path / "train" / classes[777] / "0.png"
    file.unlink()
    image(file, 7, 7)
    data = load("ImageNet1K", tmp_path, progress=False)
    assert data.name == "ImageNet1K/64" and data.image_shape == (3, 64, 64)
    assert data.classes == tuple(classes) and data.test_labels.tolist() == list(range(1000))
    torch.testing.assert_close(
        data.train_images[777], (pixels(file) / 255 - MEAN) / STD, rtol=0, atol=1e-6
    )
    (tmp_path / "train" / classes[0]).rename(tmp_path / "gone")
    with pytest.raises(FastmttError, match="train has 999 class folders, ImageNet1K has 1000"):
        load("ImageNet1K", tmp_path, progress=False)


def test_all_of_imagenet_from_tensors(tmp_path: Path) -> None:
    """DATM's layout: a .pt float tensor each, in [0,1]; kept as bytes."""
    classes = wnids(1000)
    thousand_classes(tmp_path, classes, image(tmp_path / "0.pt", 3, 4, 8))
    file = tmp_path / "train" / classes[5] / "0.pt"
    file.unlink()
    exact = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.save(exact, file)
    data = load("ImageNet1K", tmp_path, res=8, progress=False)
    assert data.name == "ImageNet1K/8" and data.image_shape == (3, 8, 8)
    assert (data.space.to_pixels(data.train_images[5:6])[0] - exact).abs().max() <= 0.5 / 255 + 1e-6

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)

    damaged = [
        (exact - 0.5, r"holds values from -0\.\d+ to 0\.\d+, wanted 0 to 1, not yet normalised"),
        (exact * torch.nan, "holds values from nan"),
        (exact.to(torch.complex64), r"holds torch\.complex64 \[3, 8, 8\], wanted a float tensor"),
        (exact[0], r"holds torch\.float32 \[8, 8\], wanted a float tensor \[3,H,W\]"),
        (exact[:2], r"holds \[2, 8, 8\], wanted"),
        (exact[:, :0], r"holds \[3, 0, 8\], wanted"),
        ({"image": exact}, r"holds <class 'dict'>, wanted a float tensor"),
        (Evil(), "is damaged or no tensor"),
        (np.ones(3), "is damaged or no tensor"),
    ]
    for content, sentence in damaged:
        torch.save(content, file)
        with pytest.raises(FastmttError, match=rf"/0\.pt {sentence}") as no:
            load("ImageNet1K", tmp_path, res=8, progress=False)
        assert "\n" not in str(no.value)
    assert not (tmp_path / "ran").exists()
    torch.save(exact, file)
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(FastmttError, match=r"/0\.pt is damaged or no tensor"):
            load("ImageNet1K", tmp_path, res=8, progress=False)
