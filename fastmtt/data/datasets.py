"""Data sets by name: images in their training space, labels, classes."""

import difflib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastmtt.data.archives import read_archive
from fastmtt.data.digits import read_digits
from fastmtt.data.folders import read_folder
from fastmtt.data.held_out import hold_out
from fastmtt.data.imagenet import read_1k, read_subset
from fastmtt.data.images import Images
from fastmtt.data.memory import available
from fastmtt.data.raw import RawImages, Request, Wanted
from fastmtt.data.spaces import Normalised, Space, normalised_by
from fastmtt.data.tiny import read_tiny
from fastmtt.data.torchvision_sets import torchvision_reader
from fastmtt.data.zca import fit_zca
from fastmtt.errors import FastmttError


@dataclass(frozen=True)
class DataSet:
    """A data set ready for training.

    Images are [n,C,H,W] float32 in the training space, as tensors, or as `Images`, which read as
    the same bits and take a quarter of the memory.

    Attributes:
        name: As the configuration names it, with subset and res where it can have several.
        train_images: The images to train on.
        train_labels: [n] int64.
        test_images: The images to test on.
        test_labels: [m] int64.
        held_out_images: Training images kept out of training, to choose by; none, or `held_out`
            of each class.
        held_out_labels: [k] int64.
        classes: The classes' names, by label.
        space: The training space, with its way back to pixels; fitted on all training images,
            those held out included.
        source: Where the images came from; state it beside any accuracy.
        held_out: Images held out of each class.
    """

    name: str
    train_images: Tensor | Images
    train_labels: Tensor
    test_images: Tensor | Images
    test_labels: Tensor
    held_out_images: Tensor | Images
    held_out_labels: Tensor
    classes: tuple[str, ...]
    space: Space
    source: str
    held_out: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """An image's (C, H, W)."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load(
    name: str,
    data_path: str | Path,
    *,
    zca: bool = False,
    progress: bool = True,
    download: bool = False,
    subset: str = "imagenette",
    res: int | None = None,
    crop: bool = False,
    held_out: int = 0,
    memory: int | None = None,
) -> DataSet:
    """Load a data set into its training space.

    Args:
        name: One of `known()`.
        data_path: The folder the data set lies in, or an .npz archive of JPEG images; digits need
            none.
        zca: Whiten by ZCA fitted on the training images instead of normalising.
        progress: Show what takes a while on stderr.
        download: Fetch what is missing, where the source can be fetched.
        subset: Which ten classes of ImageNet.
        res: Height and width images are brought to, for ImageNet and folders.
        crop: Keep their aspect ratio for it: their shorter side is brought to `res`, and the
            middle cut out.
        held_out: Training images of each class kept out of training; always the same ones.
        memory: Bytes there are for the images (None, what the machine has available). Those that
            would take more than half of it as float32 are kept as `Images`.

    Raises:
        FastmttError: The name is unknown, the data are missing, damaged or another data set's, or
            something does not fit in memory.
    """
    row = _row(name)
    size = _res(name, row, res)
    _check_crop(name, row, crop, size)
    request = Request(Path(data_path).expanduser(), subset, size, crop, download, progress)
    raw = _read(name, row, request)
    full_name = _full_name(name, row, request, raw)
    space = _space(row, raw, zca, progress)
    train, held = hold_out(raw, held_out)
    parts = [Images(images, space, raw.white) for images in (train[0], raw.test_images, held[0])]
    there = available() if memory is None else memory
    if 4 * sum(part.raw.numel() for part in parts) > there / 2:
        images: list[Tensor | Images] = [*parts]
    else:
        images = [part.whole() for part in parts]
    return DataSet(
        name=full_name,
        train_images=images[0],
        train_labels=train[1],
        test_images=images[1],
        test_labels=raw.test_labels,
        held_out_images=images[2],
        held_out_labels=held[1],
        classes=raw.classes,
        space=space,
        source=raw.source,
        held_out=held_out,
    )


def known() -> tuple[str, ...]:
    """Give the names `load` knows."""
    return tuple(_KNOWN)


def _row(name: str) -> "_Row":
    if name in _KNOWN:
        return _KNOWN[name]
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in _KNOWN], 1, 0.4)
    hint = next((f" (nearest: {known})" for known in _KNOWN if [known.lower()] == near), "")
    raise FastmttError(f"no data set is called {name!r}; known are {', '.join(_KNOWN)}{hint}")


def _res(name: str, row: "_Row", asked: int | None) -> int | None:
    """The size images are read at: programs of the field pass one for sets of fixed size too."""
    own = row.shape[1] if row.shape else None
    if row.any_res:
        return asked or own
    if asked not in (None, own):
        warnings.warn(f"res {asked} is ignored: {name}'s images are {own}x{own}", stacklevel=3)
    return own


def _check_crop(name: str, row: "_Row", crop: bool, size: int | None) -> None:
    if crop and not row.any_res:
        raise FastmttError(
            f"crop is true, but {name}'s images are of one size, {size}x{size}; leave crop out"
        )
    if crop and size is None:
        raise FastmttError("crop is true, but res does not say how large images become; give res")


def _read(name: str, row: "_Row", request: Request) -> RawImages:
    if request.path.suffix == ".npz" and row.from_archive:
        assert row.classes and row.shape and request.res
        shape = (row.shape[0], request.res, request.res)
        raw = read_archive(request.path, Wanted(name, row.classes, shape), show=request.show)
    else:
        raw = row.read(request)
    for split, images, labels in (
        ("training", raw.train_images, raw.train_labels),
        ("test", raw.test_images, raw.test_labels),
    ):
        if len(images) != len(labels) or len(labels) == 0:
            raise FastmttError(
                f"{name} in {request.path} has {len(images)} {split} images and {len(labels)} "
                "labels, wanted as many; fetch it again"
            )
        if labels.min() < 0 or labels.max() >= len(raw.classes):
            raise FastmttError(
                f"{name} in {request.path} has {split} labels outside 0 to "
                f"{len(raw.classes) - 1}; fetch it again"
            )
    counts = raw.train_labels.bincount(minlength=len(raw.classes))
    if counts.min() == 0:
        raise FastmttError(
            f"{name} in {request.path} has no training image of class "
            f"{raw.classes[int(counts.argmin())]!r}; fetch it again"
        )
    return raw


def _full_name(name: str, row: "_Row", request: Request, raw: RawImages) -> str:
    """Tell subsets and sizes apart: stored experts carry the name."""
    height, width = raw.train_images.shape[-2:]
    size = str(height) if height == width else f"{height}x{width}"
    size += "_crop" * request.crop
    part = {"ImageNet": [request.subset], "folder": [request.path.resolve().name]}.get(name, [])
    return "/".join([name, *part, size]) if row.any_res else name


def _space(row: "_Row", raw: RawImages, zca: bool, show: bool) -> Space:
    if zca:
        return fit_zca(raw.train_images, raw.white, show=show)
    if row.mean is None or row.std is None:
        return normalised_by(raw.train_images, raw.white)
    return Normalised(row.mean, row.std)


@dataclass(frozen=True)
class _Row:
    """What the field fixes for a data set; None where the data say it themselves.

    `shape` is the images' (C, H, W), and with `any_res` only the one they have by default.
    """

    read: Callable[[Request], RawImages]
    classes: int | None
    shape: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    any_res: bool = False
    from_archive: bool = True


# The constants of the published programs; digits have their own training images'.
_MNIST = ((1, 28, 28), (0.1307,), (0.3081,))
_FASHION = ((1, 28, 28), (0.2861,), (0.3530,))
_SVHN = ((3, 32, 32), (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))
_CIFAR = ((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_KNOWN = {
    "digits": _Row(read_digits, 10, (1, 8, 8), (0.3055,), (0.3763,), from_archive=False),
    "MNIST": _Row(torchvision_reader("MNIST", "MNIST", "MNIST/raw"), 10, *_MNIST),
    "FashionMNIST": _Row(
        torchvision_reader("FashionMNIST", "FashionMNIST", "FashionMNIST/raw"), 10, *_FASHION
    ),
    "SVHN": _Row(torchvision_reader("SVHN", "SVHN", "train_32x32.mat"), 10, *_SVHN),
    "CIFAR10": _Row(torchvision_reader("CIFAR10", "CIFAR-10", "cifar-10-batches-py"), 10, *_CIFAR),
    "CIFAR100": _Row(torchvision_reader("CIFAR100", "CIFAR-100", "cifar-100-python"), 100, *_CIFAR),
    "Tiny": _Row(read_tiny, 200, (3, 64, 64), *_IMAGENET),
    "ImageNet": _Row(read_subset, 10, (3, 128, 128), *_IMAGENET, any_res=True),
    "ImageNet1K": _Row(read_1k, 1000, (3, 64, 64), *_IMAGENET, any_res=True),
    "folder": _Row(read_folder, None, None, None, None, any_res=True, from_archive=False),
}
