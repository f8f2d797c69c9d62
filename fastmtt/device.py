"""Where a command computes, and its data brought there."""

from __future__ import annotations

import dataclasses

import torch

from fastmtt.data import DataSet, load
from fastmtt.data.memory import available
from fastmtt.errors import FastmttError
from fastmtt.info import instruction_sets
from fastmtt.options import BaseConfig
from fastmtt.progress import say

_SPLITS = ("train", "test", "held_out")


def load_data(config: BaseConfig) -> DataSet:
    """The configured data set on the configured device, made the current one; threads set.

    Raises:
        FastmttError: the device is not there, or the data are not.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    there = torch.cuda.is_available()
    name = ("cuda" if there else "cpu") if config.device == "auto" else config.device
    if name != "cpu" and not there:
        raise FastmttError(f"device is {name}, but torch finds no GPU here; use --device cpu")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise FastmttError(f"device is {name}, but the last GPU here is cuda:{last}; choose it")
    if name == "cpu" and config.precision == "tf32":
        raise FastmttError("precision is tf32, a GPU's, but device is cpu; leave precision out")
    if name == "cpu" and config.precision == "bf16":
        _say_if_slow()
    memory = available()
    if name != "cpu":
        # the current one: there kernels are launched and graphs recorded
        torch.cuda.set_device(torch.device(name).index or 0)
        memory = min(memory, torch.cuda.mem_get_info(torch.device(name))[0])
    dataset = load(
        config.dataset,
        config.data_path,
        zca=config.zca,
        download=config.download,
        subset=config.subset,
        res=config.res,
        crop=config.crop,
        held_out=config.held_out,
        memory=memory,
    )
    moved = {
        f"{split}_{what}": getattr(dataset, f"{split}_{what}").to(name)
        for split in _SPLITS
        for what in ("images", "labels")
    }
    return dataclasses.replace(dataset, **moved)


def _say_if_slow() -> None:
    """Say so where bfloat16 is computed as float32, and rounded in between."""
    if not instruction_sets().get("avx512_bf16", True):
        say(
            "precision is bf16, but this processor has no bfloat16 instructions: fp32 is as fast "
            "and more exact"
        )
