"""Pictures of distilled images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastmtt.pictures import save_image_grid


def test_small_images_are_enlarged_ten_a_row(tmp_path: Path) -> None:
    """Images of plain left and right halves: cell i of the grid is image i, enlarged."""
    images = torch.zeros(12, 3, 8, 8)
    images[:, 0, :, 4:] = 1.0
    images[11] = images[11].flip(-1)
    save_image_grid(tmp_path / "images.png", images)
    picture = np.array(Image.open(tmp_path / "images.png"))
    step, edge = 32 + 2, 2  # torchvision's padding
    assert picture.shape == (2 * step + edge, 10 * step + edge, 3)

    def cell(row: int, column: int) -> Any:
        top, left = row * step + edge, column * step + edge
        return picture[top : top + 32, left : left + 32]

    assert (cell(0, 9)[:, :16] == 0).all() and (cell(0, 9)[:, 16:, 0] == 255).all()
    assert (cell(1, 1)[:, :16, 0] == 255).all() and (cell(1, 1)[:, 16:] == 0).all()
    assert (cell(0, 0)[:, :, 1:] == 0).all()


def test_large_images_keep_their_size_and_outliers_are_clipped(tmp_path: Path) -> None:
    images = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    images[1, 0, 5, 7] = 30.0
    std, mean = images.std(), images.mean()
    save_image_grid(tmp_path / "images.png", images)
    picture = np.array(Image.open(tmp_path / "images.png"))
    assert picture.shape == (64 + 4, 3 * 66 + 2, 3)
    shown = picture[2:66, 2 + 66 : 66 + 66, 0].astype(float)
    clipped = images[1, 0].clamp(mean - 2.5 * std, mean + 2.5 * std).double()
    expected = 255 * (clipped - clipped.min()) / (clipped.max() - clipped.min())
    np.testing.assert_allclose(shown, expected.numpy(), rtol=0, atol=1)
    save_image_grid(tmp_path / "one.png", torch.rand(1, 1, 8, 8))
    # torchvision frames a grid, not a single image
    assert Image.open(tmp_path / "one.png").size == (32, 32)
