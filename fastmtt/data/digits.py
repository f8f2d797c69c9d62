"""scikit-learn's handwritten digits: real images that need no download."""

import numpy as np
import torch

from fastmtt.data.raw import RawImages, Request


def read_digits(request: Request) -> RawImages:
    """UCI's digits (1797 images of 8x8), one of four for testing."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # RandomState's streams are frozen for good (NEP 19), so the split is the same everywhere.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    testing = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = shuffled[digits.target[shuffled] == label]
        testing[members[: round(len(members) / 4)]] = True
    return RawImages(
        train_images=images[~testing],
        train_labels=labels[~testing],
        test_images=images[testing],
        test_labels=labels[testing],
        classes=tuple(str(label) for label in range(10)),
        source="scikit-learn's handwritten digits",
        white=16,
    )
