"""Where a command computes, and its data brought there."""

from __future__ import annotations

import dataclasses

import torch

from fastmtt.data import DataSet, load
from fastmtt.errors import FastmttError
from fastmtt.options import BaseConfig


def load_data(config: BaseConfig) -> DataSet:
    """The configured data set on the configured device, with torch's threads set.

    Raises:
        FastmttError: the device is not there, or the data are not.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    there = torch.cuda.is_available()
    name = ("cuda" if there else "cpu") if config.device == "auto" else config.device
    if name != "cpu" and not there:
        raise FastmttError(f"device is {name}, but torch finds no GPU here; use --device cpu")
    dataset = load(config.dataset, config.data_path, zca=config.zca, download=config.download)
    images = {
        field: getattr(dataset, field).to(name)
        for field in ("train_images", "train_labels", "test_images", "test_labels")
    }
    return dataclasses.replace(dataset, **images)
