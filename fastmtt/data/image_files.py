"""One image file: any format Pillow reads, or a tensor, brought to the size that is wanted."""

import pickle
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from fastmtt.errors import FastmttError
from fastmtt.files import one_line

GRAY = {"1", "L", "LA"}
_DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow cuts these off at 255


@cache
def image_formats() -> tuple[str, ...]:
    """Pillow's formats; EPS is left out, as reading it runs a PostScript program."""
    Image.init()
    return tuple(name for name in Image.OPEN if name != "EPS")


@cache
def image_suffixes() -> frozenset[str]:
    """The suffixes of files in `image_formats`, in lower case."""
    formats = image_formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in formats)


def open_image(file: str) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        FastmttError: It is missing or no image.
    """
    try:
        return Image.open(file, formats=image_formats())
    except Exception as error:  # Pillow's plugins raise whatever a foreign file makes them
        raise FastmttError(f"{file} is no image ({one_line(error)})") from None


def read_image(
    file: str, shape: tuple[int, int, int], res: int | None, crop: bool = False
) -> np.ndarray:
    """Read one image as uint8 [C,H,W], or a .pt tensor; brought to `res` where it is given."""
    pixels = _tensor(file) if file.endswith(".pt") else _pixels(file, shape[0])
    if res is not None:
        pixels = cropped(pixels, res) if crop else resized(pixels, res)
    if pixels.shape != shape:
        raise FastmttError(f"{file} is {list(pixels.shape)}, wanted {list(shape)}")
    return pixels.numpy()


def _pixels(file: str, channels: int) -> Tensor:
    with open_image(file) as image:
        if image.mode in _DEEP:
            raise FastmttError(
                f"{file} has more than 8 bits a channel (mode {image.mode}); convert it to 8"
            )
        try:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        except Exception as error:
            raise FastmttError(f"{file} is damaged ({one_line(error)})") from None
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1)


def _tensor(file: str) -> Tensor:
    """Read a float tensor [3,H,W] in [0,1], not yet normalised, and round it to bytes."""
    try:
        image = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = one_line(error).split(". ")[0]
        raise FastmttError(f"{file} is damaged or no tensor ({reason})") from None
    if not isinstance(image, Tensor) or not image.is_floating_point() or image.ndim != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image)
        raise FastmttError(f"{file} holds {got}, wanted a float tensor [3,H,W]")
    if image.shape[0] != 3 or image.numel() == 0:
        raise FastmttError(f"{file} holds {list(image.shape)}, wanted a float tensor [3,H,W]")
    if not (image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise FastmttError(
            f"{file} holds values from {image.min()} to {image.max()}, wanted 0 to 1, not yet "
            "normalised"
        )
    return (image.float() * 255).round_().clamp_(0, 255).byte()


def resized(image: Tensor, res: int) -> Tensor:
    """Bring uint8 [C,H,W] to [C,res,res] by bilinear interpolation without antialiasing.

    Both sides are brought to `res`, so the aspect ratio changes, as in the published programs.
    Those resize a tensor, which torchvision did without antialiasing when their results were made
    (0.12; today's default has changed), and so it is done here: with it, images are smoother and
    results not comparable. Published images are normalised before they are resized, which commutes
    with interpolation; here the result is rounded to a byte.
    """
    if image.shape[1:] == (res, res):
        return image
    size = (res, res)
    floats = interpolate(image[None].float(), size, mode="bilinear", antialias=False)[0]
    return floats.round_().clamp_(0, 255).byte()


def cropped(image: Tensor, res: int) -> Tensor:
    """Bring uint8 [C,H,W] to [C,res,res]: the shorter side by antialiasing, then the middle.

    torchvision's Resize and CenterCrop, as IDC's programs use them.
    """
    # imported here: its registration takes a moment
    from torchvision.transforms.v2 import functional

    sides: Tensor = functional.resize(image, [res], antialias=True)
    middle: Tensor = functional.center_crop(sides, [res, res])
    return middle
