"""IDC's augmentation against its composition spelled out, and its transpose."""

import pytest
import torch
import torch.nn.functional as F

from fastmtt import draws
from fastmtt.augment import DSA
from fastmtt.diffaug import DiffAug, for_batch, without
from fastmtt.errors import FastmttError
from fastmtt.ops.reference_dsa import KINDS
from tests import tolerances

FULL, SHAPE = "color_crop_cutout_flip_scale_rotate", (3, 8, 8)


def spelled_out(image, kind, v):
    """One image [C,H,W] under one operation, as IDC's description has it."""
    size = image.shape[-1]
    if kind == "flip":
        return image.flip(-1) if v[0] == 1 else image
    if kind == "color":
        image = image + v[0]
        grey = image.mean(0, keepdim=True)
        image = (image - grey) * v[1] + grey
        return (image - image.mean()) * v[2] + image.mean()
    if kind == "crop":
        padded = F.pad(image, (size,) * 4)
        top, left = size + int(v[0]), size + int(v[1])
        return padded[:, top : top + size, left : left + size]
    if kind == "cutout":
        image = image.clone()
        for row in range(int(v[0]) - size // 4, int(v[0]) + size // 4):
            for column in range(int(v[1]) - size // 4, int(v[1]) + size // 4):
                if 0 <= row < size and 0 <= column < size:
                    image[:, row, column] = 0
        return image
    if kind == "scale":
        theta = [[v[0], 0, 0], [0, v[1], 0]]
    else:
        theta = [[v[0].cos(), -v[0].sin(), 0], [v[0].sin(), v[0].cos(), 0]]
    theta = torch.tensor(theta, dtype=image.dtype)[None]
    grid = F.affine_grid(theta, (1, *image.shape), align_corners=False)
    return F.grid_sample(image[None], grid, align_corners=False)[0]


def names(parameters):
    return [KINDS[k] for k in parameters.kind[:, 0].tolist()]


@pytest.mark.parametrize("shared", [False, True])
def test_flip_colour_one_of_the_rest_and_cutout_in_this_order(shared):
    augment, chosen = DiffAug(FULL, shared=shared), set()
    images = torch.rand(1, 5, *SHAPE, dtype=torch.float64)
    for i in range(20):
        drawn = augment.draw(draws.stream(0, "dsa", i), 5, SHAPE)
        first, second, one, last = names(drawn)
        assert (first, second, last) == ("flip", "color", "cutout")
        chosen.add(one)
        assert shared == bool((drawn.values == drawn.values[:, :, :1]).all())
        want = images[0]
        for kind, values in zip(names(drawn), drawn.values[:, 0].double(), strict=True):
            want = torch.stack([spelled_out(x, kind, v) for x, v in zip(want, values, strict=True)])
        got = augment.apply(images, drawn)[0]
        torch.testing.assert_close(got, want, rtol=tolerances.FORMULA, atol=tolerances.FORMULA)
    assert chosen == {"crop", "scale", "rotate"}


def test_pull_back_is_the_transpose_of_the_linear_part():
    augment, make = DiffAug(FULL), torch.Generator().manual_seed(0)
    for i in range(10):
        drawn = augment.draw(draws.stream(1, "dsa", i), 4, SHAPE)
        x, g = (torch.randn(1, 4, *SHAPE, dtype=torch.float64, generator=make) for _ in range(2))
        linear = augment.apply(x, drawn) - augment.apply(torch.zeros_like(x), drawn)
        forth, back = (linear * g).sum(), (x * augment.pull_back(g, drawn)).sum()
        torch.testing.assert_close(forth, back, rtol=tolerances.FORMULA, atol=tolerances.FORMULA)


def test_real_and_synthetic_images_share_a_draw():
    augment = DiffAug("color_crop_cutout", shared=True)
    drawn = augment.draw(draws.stream(0, "dsa", 3), 2, SHAPE)
    x = torch.rand(1, 1, *SHAPE).expand(1, 7, *SHAPE).contiguous()
    more, few = augment.apply(x, for_batch(drawn, 7)), augment.apply(x[:, :2], drawn)
    for image in more[0]:
        assert torch.equal(image, few[0, 0])
    assert names(drawn) == ["color", "crop", "cutout"]


def test_a_strategy_less_some_operations_and_none():
    assert without(FULL, "cutout") == "color_crop_flip_scale_rotate"
    assert without(FULL, "cutout", "flip") == "color_crop_scale_rotate"
    assert without("cutout", "cutout") == "none" and without("none", "flip") == "none"
    assert DiffAug("none").draw(draws.stream(0, "dsa"), 2, SHAPE).kind.shape == (0, 1)
    lone = DiffAug("flip_color").draw(draws.stream(0, "dsa"), 2, SHAPE)
    assert names(lone) == ["flip", "color"]
    assert names(DSA("flip_color").draw(draws.stream(0, "dsa"), 2, SHAPE)) != names(lone)


def test_a_rotation_of_images_that_are_not_square_is_refused():
    with pytest.raises(FastmttError, match="square"):
        DiffAug("color_rotate").draw(draws.stream(0, "dsa"), 2, (3, 8, 6))
