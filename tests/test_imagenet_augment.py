"""IDC's augmentation of ImageNet against torchvision, image by image, in float64."""

import numpy as np
import pytest
import torch
from compare import assert_close
from tolerances import FORMULA, GREY
from torchvision.transforms.v2 import functional as F

from fastmtt.data import Normalised
from fastmtt.imagenet_augment import ImageNetAugment

SHAPE = 3, 20, 26
SPACE = Normalised([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
AUGMENT = ImageNetAugment(SPACE)
# Krizhevsky et al.: principal axes of ImageNet's colours, and their eigenvalues, axis by axis.
AXES = [(-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203)]
EIGENVALUES = [0.2175, 0.0188, 0.0045]


def by_torchvision(pixels, values):
    top, left, height, width = (int(value) for value in values[:4])
    box = top, left, height, width
    pixels = F.resized_crop(pixels[None], *box, list(SHAPE[1:]), antialias=False)[0]
    if values[4]:
        pixels = F.horizontal_flip(pixels)
    colours = F.adjust_brightness, F.adjust_contrast, F.adjust_saturation
    for which in values[5:8].int().tolist():
        pixels = colours[which](pixels, float(values[8 + which]))
    for axis, eigenvalue, alpha in zip(AXES, EIGENVALUES, values[11:].tolist(), strict=True):
        light = torch.tensor(axis, dtype=torch.float64) * eigenvalue * alpha
        pixels = pixels + light[:, None, None]
    return pixels


@pytest.mark.parametrize("students", [1, 2])
@pytest.mark.parametrize("tolerance", [FORMULA, GREY])
def test_every_image_is_augmented_as_torchvision_would(students, tolerance):
    """To rounding where no grey image is mixed in."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(students, 9, *SHAPE, generator=random, dtype=torch.float64)
    drawn = [AUGMENT.draw(np.random.default_rng(s), 9, SHAPE) for s in range(students)]
    parameters = drawn[0]._replace(values=torch.cat([one.values for one in drawn], 1))
    if tolerance == FORMULA:
        parameters.values[..., 9:11] = 1  # contrast, saturation
    found = SPACE.to_pixels(AUGMENT.apply(SPACE.transform(pixels), parameters))
    for images, row, out in zip(pixels, parameters.values[0], found, strict=True):
        for image, values, one in zip(images, row.double(), out, strict=True):
            assert_close(one, by_torchvision(image, values), tolerance)


def test_draws_have_torchvisions_ranges():
    values = AUGMENT.draw(np.random.default_rng(1), 4000, SHAPE).values[0, 0].double()
    top, left, height, width = values[:, :4].T
    area, aspect = height * width / (20 * 26), width / height
    assert 0.45 < area.min() < 0.55 and area.max() <= 1
    assert 0.7 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.43, "4/3, and a pixel's rounding"
    assert ((top >= 0) & (top + height <= 20) & (left >= 0) & (left + width <= 26)).all()
    assert (top + height == 20).any() and (left + width == 26).any()
    assert set(values[:, 4].tolist()) == {0, 1}
    assert len(values[:, 5:8].unique(dim=0)) == 6
    assert 0.6 <= values[:, 8:11].min() < 0.61 and 1.39 < values[:, 8:11].max() <= 1.4
    assert values[:, 11:].std() == pytest.approx(0.1, rel=0.03), "4 standard errors of 12000"


def test_an_image_that_no_try_fits_stays_whole():
    values = AUGMENT.draw(np.random.default_rng(2), 5, (3, 4, 400)).values[0, 0]
    assert values[:, :4].tolist() == [[0, 0, 4, 400]] * 5
