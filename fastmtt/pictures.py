"""Pictures: distilled images, as the published programs show theirs, and bars of accuracies.

What draws them is imported when it does: that takes seconds, and most commands draw nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fastmtt.files import replacing

_CLIP = 2.5  # standard deviations
_SMALL, _ENLARGE = 64, 4  # images below so many pixels are shown so many times as large


def save_image_grid(path: Path, pixels: Tensor) -> None:
    """Write a PNG of images [n,C,H,W] in pixel space: ten a row, each from dark to bright.

    Clipped to mean ± 2.5 standard deviations of all, small ones enlarged four times.
    """
    from torchvision.utils import save_image

    with replacing(path) as temporary:
        save_image(
            _for_the_eye(pixels.detach().cpu().float()),
            temporary,
            format="PNG",
            nrow=10,
            normalize=True,
            scale_each=True,
        )


def save_bars(path: Path, values: Mapping[str, tuple[float, float]], label: str) -> None:
    """Write a PNG of one horizontal bar a name, its mean written out, its deviation a whisker."""
    from matplotlib.figure import Figure

    names, means = [*values], [mean for mean, _ in values.values()]
    figure = Figure(figsize=(6, 0.9 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    spread = [std for _, std in values.values()]
    bars = axes.barh(names, means, xerr=spread, height=0.6, color="#4477aa", ecolor="#222222")
    words = [f"{mean:.1f} ± {std:.1f}" for mean, std in values.values()]
    axes.bar_label(bars, words, padding=4, fontsize=9)
    axes.set_xlim(0, 1.25 * max(mean + std for mean, std in values.values()) or 1)
    axes.invert_yaxis()  # the first name on top
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _for_the_eye(pixels: Tensor) -> Tensor:
    std, mean = torch.std_mean(pixels)
    pixels = pixels.clamp(mean - _CLIP * std, mean + _CLIP * std)
    if pixels.shape[-1] < _SMALL:
        pixels = pixels.repeat_interleave(_ENLARGE, 2).repeat_interleave(_ENLARGE, 3)
    return pixels
