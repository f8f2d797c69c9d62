"""Training images kept out of training, by which a distilled set can be chosen."""

import torch
from torch import Tensor

from fastmtt.data.raw import RawImages
from fastmtt.draws import stream
from fastmtt.errors import FastmttError

_PART = 128  # images moved at a time
_Labelled = tuple[Tensor, Tensor]


def hold_out(raw: RawImages, count: int) -> tuple[_Labelled, _Labelled]:
    """Take `count` images of each class out of the training images, always the same ones.

    The images left are moved together in place, so that a large set is never there twice:
    `raw.train_images` is used up.

    Args:
        raw: The data set; which images are drawn depends on it alone.
        count: Images of each class, at least 0.

    Returns:
        Images [n - k,C,H,W] and labels of those left, and the k held out, both in their old order.

    Raises:
        FastmttError: A class would have no image left.
    """
    images, labels = raw.train_images, raw.train_labels
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(len(raw.classes) if count else 0):
        members = (labels == label).nonzero().flatten()
        if count >= len(members):
            raise FastmttError(
                f"held_out is {count} and class {raw.classes[label]!r} has {len(members)} "
                "training images, wanted one left to train on; lower held_out"
            )
        chosen = stream(0, "held out", label).permutation(len(members))[:count]
        held[members[torch.from_numpy(chosen)]] = True
    apart = images[held], labels[held]
    kept = (~held).nonzero().flatten()
    if count:
        for begin in range(0, len(kept), _PART):
            part = kept[begin : begin + _PART]
            images[begin : begin + len(part)] = images[part]
    return (images[: len(kept)], labels[kept]), apart
