"""What training images are made of: windows of canvases, against torch.roll; cotangents back."""

import json

import numpy as np
import pytest
import straight_line
import torch

from fastmtt.decode import Decode, InPixels, described
from fastmtt.errors import FastmttError
from fastmtt.parametrisation import PIXELS, Canvas

SHAPE = (3, 6, 4)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def cotangent(sample, stored, g):
    """What autograd sends back through a sample."""
    leaf = stored.clone().requires_grad_()
    return torch.autograd.grad(sample(leaf), leaf, g)[0]


def drawn_for(parametrisation, students, rows):
    rng = np.random.default_rng(0)
    return torch.cat([parametrisation.draw(rng, rows, SHAPE) for _ in range(students)])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("samples", [1, 3])
def test_windows_are_cut_from_rolled_canvases(size, samples):
    canvas = Canvas(size, samples)
    stored = normal(2, 5, *canvas.stored_shape(SHAPE))
    drawn = drawn_for(canvas, 2, 5)
    found = canvas.sample(stored, drawn)
    assert found.shape == (2, 5 * samples, *SHAPE)
    assert canvas.labels(torch.arange(5)[None]).tolist() == [[0, 1, 2, 3, 4] * samples]
    assert canvas.count(5) == 5 * samples
    for images, windows, offsets in zip(stored, found, drawn.tolist(), strict=True):
        repeated = torch.cat([images] * samples)
        assert torch.equal(windows, straight_line.roll_and_cut(repeated, offsets, *SHAPE[1:]))
    g = normal(2, 5 * samples, 3, seed=2)
    wanted = cotangent(canvas.labels, normal(2, 5, 3), g)
    assert torch.allclose(canvas.pull_back_labels(g, 5), wanted, rtol=1e-14)
    g = normal(*found.shape, seed=1)
    wanted = cotangent(lambda leaf: canvas.sample(leaf, drawn), stored, g)
    assert torch.allclose(canvas.pull_back(g, drawn, 5), wanted, rtol=1e-14, atol=1e-14)


def test_offsets_reach_round_the_whole_canvas():
    canvas = Canvas(2)
    drawn = drawn_for(canvas, 1, 4000)[0]
    for axis, side in enumerate(canvas.stored_shape(SHAPE)[1:]):
        assert drawn[:, axis].unique().tolist() == [*range(side)]


def test_the_published_order_draws_down_and_right_image_by_image():
    canvas = Canvas(2, 2)
    found = canvas.draw_published(torch.Generator().manual_seed(3), 3, SHAPE)
    generator = torch.Generator().manual_seed(3)
    wanted = [
        [int(torch.randint(side, (1,), generator=generator)) for side in (12, 8)]
        for _ in range(2 * 3)
    ]
    assert found.tolist() == [wanted]


def test_a_canvas_shows_the_images_it_was_put_together_from():
    canvas, images = Canvas(3), normal(2 * 9, *SHAPE)
    stored = canvas.assemble(images)
    assert stored.shape == (2, *canvas.stored_shape(SHAPE))
    assert torch.equal(stored[1, :, 6:12, 8:12], images[2 * 5 + 1]), "row 1, column 2, image 1"
    assert torch.equal(canvas.views(stored), images)


def test_pixels_are_what_they_are():
    images = normal(2, 5, *SHAPE)
    assert PIXELS.draw(np.random.default_rng(0), 5, SHAPE) is None
    assert PIXELS.sample(images, None) is images and PIXELS.pull_back(images, None, 5) is images
    assert PIXELS.assemble(images[0]).shape == images[0].shape


def test_a_description_leads_back():
    again = described(Canvas(3, 2).describe())
    assert isinstance(again, Canvas) and (again.size, again.samples) == (3, 2)
    assert described(None) is PIXELS and described(PIXELS.describe()) is PIXELS


@pytest.mark.parametrize(
    "description", [{"kind": "canvas"}, {"kind": "canvas", "size": 0, "samples": 1}, {"kind": "x"}]
)
def test_what_no_version_wrote_is_refused(description):
    with pytest.raises(FastmttError, match="wanted pixels, a canvas or cells"):
        described(description)


def zoomed(stored, factor):
    """IDC's decode of images [n,C,H,W] by its words: grey border, crops row by row, bilinear."""
    height, width = stored.shape[-2:]
    border = (0, -width % factor, 0, -height % factor)
    padded = torch.nn.functional.pad(stored, border, value=0.5)
    high, wide = -(-height // factor), -(-width // factor)
    crops = [
        padded[:, :, i * high : (i + 1) * high, j * wide : (j + 1) * wide]
        for i in range(factor)
        for j in range(factor)
    ]
    return torch.nn.functional.interpolate(
        torch.cat(crops), size=(height, width), mode="bilinear", align_corners=False
    )


DECODED = {
    "single": lambda x: [(x, 3)],
    "multi": lambda x: [(x, 1), (x, 2), (x, 3)],
    # 5 images, 30 of them at most: two by 3 leave 12 for three, of which two by 2 leave 4 for one
    "bound": lambda x: [(x[:2], 3), (x[2:4], 2), (x[4:], 1)],
}


@pytest.mark.parametrize("kind", DECODED)
@pytest.mark.parametrize("shape", [SHAPE, (3, 8, 8)], ids=["divided", "with a border"])
def test_cells_are_enlarged(kind, shape):
    decode, stored = Decode(3, kind, bound=30), normal(2, 5, *shape)
    found = decode.sample(stored, None)
    parts = [DECODED[kind](x) for x in stored]
    wanted = torch.stack([torch.cat([zoomed(x, f) for x, f in part]) for part in parts])
    assert torch.allclose(found, wanted, rtol=1e-14, atol=1e-14)
    labels = torch.arange(10).view(2, 5)
    parts = [DECODED[kind](x) for x in labels]
    wanted = [[y for x, f in part for y in x.tolist() * f**2] for part in parts]
    assert decode.labels(labels).tolist() == wanted and decode.count(5) == len(wanted[0])
    g = normal(*found.shape, seed=1)
    wanted = cotangent(lambda leaf: decode.sample(leaf, None), stored, g)
    assert torch.allclose(decode.pull_back(g, None, 5), wanted, rtol=1e-13, atol=1e-13)
    g = normal(*decode.labels(labels).shape, 3, seed=2)
    wanted = cotangent(decode.labels, normal(2, 5, 3), g)
    assert torch.allclose(decode.pull_back_labels(g, 5), wanted, rtol=1e-13, atol=1e-13)


def test_real_images_made_small_fill_the_cells_row_by_row():
    images = normal(9 * 2, 3, 8, 8)
    stored = Decode(3).assemble(images)
    small = torch.nn.functional.interpolate(images[2 * 5 + 1][None], size=(3, 2))[0]
    assert torch.equal(stored[1, :, 3:6, 6:8], small), "rows 3 to 5, columns 6 and 7: cell 5"


def test_pixels_are_normalised_to_train_on():
    mean, std = (0.1, 0.5, 0.4), (0.2, 0.3, 0.25)
    both = InPixels(Decode(2), mean, std)
    stored = normal(1, 2, *SHAPE)
    found = both.sample(stored, None)
    columns = (torch.tensor(row, dtype=torch.float64)[:, None, None] for row in (mean, std))
    offset, scale = columns
    assert torch.allclose(found, (Decode(2).sample(stored, None) - offset) / scale, rtol=1e-13)
    g = normal(*found.shape, seed=1)
    wanted = cotangent(lambda leaf: both.sample(leaf, None), stored, g)
    assert torch.allclose(both.pull_back(g, None, 2), wanted, rtol=1e-12, atol=1e-13)
    images, labels, rest = both.whole(stored[0], torch.tensor([4, 7]))
    assert torch.equal(images, found[0]) and labels.tolist() == [4, 7] * 4 and rest is PIXELS
    start = both.noise(normal(50, 3, 2, 2))
    assert start.min() == 0 and start.max() == 1
    again = described(json.loads(json.dumps(both.describe())))
    assert torch.equal(again.sample(stored, None), found)
