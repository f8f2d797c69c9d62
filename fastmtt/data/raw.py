"""Images as their source gives them, before they enter the training space."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class RawImages:
    """A data set's images as integers.

    Attributes:
        train_images: [n,C,H,W] uint8.
        train_labels: [n] int64.
        test_images: [m,C,H,W] uint8.
        test_labels: [m] int64.
        classes: The classes' names, by label.
        source: Where the images came from, in words that belong beside a result.
        white: The integer that means 1.0.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    source: str
    white: int = 255


@dataclass(frozen=True)
class Wanted:
    """What a named data set must look like.

    Attributes:
        name: The data set's name.
        classes: Number of classes.
        shape: An image's (C, H, W).
    """

    name: str
    classes: int
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Request:
    """What a reader is asked for.

    Attributes:
        path: Where the data lie.
        subset: Which part of ImageNet.
        res: Height and width the images are brought to; None, as they are.
        crop: Keep their aspect ratio for it and cut off what sticks out.
        download: Fetch what is missing, where the source can be fetched.
        show: Show progress on stderr.
    """

    path: Path
    subset: str
    res: int | None
    crop: bool
    download: bool
    show: bool
