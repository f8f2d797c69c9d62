"""CutMix (Yun et al., 2019, arXiv 1905.04899) with its draws as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class CutMix:
    """A box of each image is another one's, and so is that share of its label.

    Attributes:
        classes: K.
        chance: that a batch is mixed.
        beta: of Beta(beta, beta), from which the kept share is drawn.
    """

    classes: int
    chance: float = 0.5
    beta: float = 1.0

    def draw(self, rng: np.random.Generator, batch: int, image_shape: tuple[int, ...]) -> Tensor:
        """A batch's draw, by key: the images' partners, then the box, int64 [1,B+4].

        The box, (top, bottom, left, right), lies round a uniform centre and is cut off at the
        image's edges; it is empty where nothing is mixed.
        """
        partners, box = np.arange(batch), [0, 0, 0, 0]
        if rng.random() < self.chance:
            side = np.sqrt(1 - rng.beta(self.beta, self.beta))
            partners, box = rng.permutation(batch), []
            for size in image_shape[1:]:
                centre, half = int(rng.integers(size)), int(size * side) // 2
                box += [max(centre - half, 0), min(centre + half, size)]
        return torch.from_numpy(np.concatenate([partners, np.array(box)]))[None]

    def apply(self, x: Tensor, y: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Images [S,B,C,H,W] mixed by draws [S,B+4], with the labels' probabilities [S,B,K]."""
        labels = y
        if not y.is_floating_point():  # not one_hot, which looks at a GPU's labels
            labels = (y[..., None] == torch.arange(self.classes, device=y.device)).to(x.dtype)
        partners, box = drawn[:, :-4], drawn[:, -4:]
        top, bottom, left, right = (box[:, i, None] for i in range(4))
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
        inside_rows, inside_columns = (
            (rows >= top) & (rows < bottom),
            (columns >= left) & (columns < right),
        )
        inside = (inside_rows[:, :, None] & inside_columns[:, None])[:, None, None]
        students = torch.arange(len(x), device=x.device)[:, None]
        share = ((bottom - top) * (right - left) / inside[0].numel()).to(x.dtype)[..., None]
        mixed = torch.where(inside, x[students, partners], x)
        return mixed, labels + share * (labels[students, partners] - labels)
