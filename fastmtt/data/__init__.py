"""Data sets, the spaces they are trained in, and archives of images."""

from fastmtt.data.datasets import DataSet, known, load
from fastmtt.data.images import Images
from fastmtt.data.spaces import Normalised, Space, Whitened, load_space

__all__ = [
    "DataSet",
    "Images",
    "Normalised",
    "Space",
    "Whitened",
    "known",
    "load",
    "load_space",
]
