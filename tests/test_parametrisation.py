"""What training images are made of: windows of canvases, against torch.roll; cotangents back."""

import numpy as np
import pytest
import straight_line
import torch

from fastmtt.errors import FastmttError
from fastmtt.parametrisation import PIXELS, Canvas, described

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
    assert torch.allclose(canvas.pull_back_labels(g), wanted, rtol=1e-14)
    g = normal(*found.shape, seed=1)
    wanted = cotangent(lambda leaf: canvas.sample(leaf, drawn), stored, g)
    assert torch.allclose(canvas.pull_back(g, drawn), wanted, rtol=1e-14, atol=1e-14)


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
    assert PIXELS.sample(images, None) is images and PIXELS.pull_back(images, None) is images
    assert PIXELS.assemble(images[0]).shape == images[0].shape


def test_a_description_leads_back():
    again = described(Canvas(3, 2).describe())
    assert isinstance(again, Canvas) and (again.size, again.samples) == (3, 2)
    assert described(None) is PIXELS and described(PIXELS.describe()) is PIXELS


@pytest.mark.parametrize(
    "description", [{"kind": "canvas"}, {"kind": "canvas", "size": 0, "samples": 1}, {"kind": "x"}]
)
def test_what_no_version_wrote_is_refused(description):
    with pytest.raises(FastmttError, match="wanted pixels or a canvas"):
        described(description)
