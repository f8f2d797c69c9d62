"""Pictures in the page against the images they show."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from run_maker import make_run, pixels

from fastmtt.errors import FastmttError
from fastmtt.pictures import save_image_grid
from fastmtt.reporting import sprites
from fastmtt.reporting.reader import read_run


def decode(source: str) -> np.ndarray:
    kind, encoded = source.removeprefix("data:image/").split(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.format.lower() == kind
    return np.array(image)


def stretched(images: torch.Tensor) -> np.ndarray:
    """From darkest to brightest, [n,H,W,3] of 0 to 255."""
    array = images.permute(0, 2, 3, 1).numpy()
    low, high = (bound(array, axis=(1, 2, 3), keepdims=True) for bound in (np.min, np.max))
    return 255 * (array - low) / (high - low)


def test_every_class_stands_in_its_row_in_either_view(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    panels = sprites.panels(run)
    assert [panel.view for panel in panels] == ["pixels", "whitened"] * 3
    assert [row.name for row in panels[0].rows] == ["tabby cat", "dog", "<b>frog</b>"]
    for panel, images in ((panels[0], pixels(6)), (panels[4], pixels(6, seed=2))):
        wanted = stretched(images)  # uniform noise: nothing lies beyond 2.5 deviations
        for label, row in enumerate(panel.rows):
            picture = decode(row.sprite.source)
            assert picture.shape == (8, 17, 4)
            assert (picture[:, 8, 3] == 0).all()  # the line between two images is clear
            for place in (0, 1):
                shown = picture[:, 9 * place : 9 * place + 8]
                assert (shown[..., 3] == 255).all()
                assert np.abs(shown[..., :3] - wanted[2 * label + place]).max() < 2
    assert not np.array_equal(*(decode(panel.rows[0].sprite.source) for panel in panels[:2]))


@pytest.mark.parametrize(("count", "size"), [(1, 8), (3, 8), (10, 32), (23, 16), (12, 64)])
def test_cells_are_the_images_a_picture_was_made_of(tmp_path, count, size):
    images = pixels(count, size)
    save_image_grid(tmp_path / "grid.png", images)
    rows = torch.arange(count).flip(0)
    cells = sprites.read_cells(tmp_path / "grid.png", images.shape, rows)
    wanted = torch.from_numpy(stretched(images)).permute(0, 3, 1, 2).flip(0) / 255
    torch.testing.assert_close(cells, wanted.float(), atol=1.5 / 255, rtol=0)


def test_other_pictures_are_refused(tmp_path):
    images = pixels(3)
    save_image_grid(tmp_path / "grid.png", images)
    whole = (tmp_path / "grid.png").read_bytes()
    with pytest.raises(FastmttError, match="no picture of 4 distilled images"):
        sprites.read_cells(tmp_path / "grid.png", (4, 3, 8, 8), torch.tensor([0]))
    for broken in (whole[:100], whole[: len(whole) // 2], b"GIF89a", b""):
        (tmp_path / "grid.png").write_bytes(broken)
        with pytest.raises(FastmttError, match="put it back whole"):
            sprites.read_cells(tmp_path / "grid.png", images.shape, torch.tensor([2]))


def test_history_shows_each_evaluation(tmp_path):
    run = read_run(make_run(tmp_path / "run"))
    history = sprites.history(run)
    assert [frame.iteration for frame in history.frames] == [0, 10, 21]
    assert (history.kept, history.shown, history.total) == (3, 6, 6)
    for seed, frame in enumerate(history.frames):
        picture, wanted = decode(frame.sprite.source), stretched(pixels(6, seed=100 + seed))
        assert picture.shape == (2 * 8 + 1, 5 * 8 + 4, 4)
        for image in range(6):
            top, left = image // 5 * 9, image % 5 * 9
            shown = picture[top : top + 8, left : left + 8, :3]
            assert np.abs(shown - wanted[image]).max() < 2


def test_large_sets_are_compressed_then_shown_in_part(tmp_path, monkeypatch):
    run = read_run(make_run(tmp_path / "run", ipc=10, evaluations=5))
    exact = sprites.panels(run)[0].rows[0]
    monkeypatch.setattr(sprites, "_EXACT_PIXELS", 1000)
    lossy = sprites.panels(run)[0].rows[0]
    assert exact.sprite.source.startswith("data:image/png")
    assert lossy.sprite.source.startswith("data:image/webp") and lossy.shown == 10
    # Three sets in two views of 30 images of 64 pixels are 11520.
    monkeypatch.setattr(sprites, "_MOST_PIXELS", 11520 // 2)
    assert [(row.shown, row.count) for row in sprites.panels(run)[5].rows] == [(5, 10)] * 3
    history = sprites.history(run)
    assert [frame.iteration for frame in history.frames] == [0, 10, 21] and history.kept == 5


def test_grey_images_and_flat_ones():
    grey = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
    shown = sprites.for_the_eye(torch.cat([grey, torch.full_like(grey, 0.5)]))
    assert shown.shape == (2, 3, 4, 4)
    assert shown[0].min() == 0 and shown[0].max() == pytest.approx(1)
    assert shown.isfinite().all()
