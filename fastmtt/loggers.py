"""Where else a run's figures go: TensorBoard or Weights & Biases, if asked for and installed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fastmtt.errors import FastmttError


class Logger(Protocol):
    """What is told of a run beside its own files."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """Figures of an outer iteration."""
        ...

    def picture(self, iteration: int, name: str, path: Path) -> None:
        """A PNG, already written."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class Nobody:
    """No logger was asked for."""

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """See :class:`Logger`."""

    def picture(self, iteration: int, name: str, path: Path) -> None:
        """See :class:`Logger`."""

    def close(self) -> None:
        """See :class:`Logger`."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`.

    Args:
        folder: The run's folder.
        iteration: Where the run begins; later events of an earlier attempt are struck out.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        writer = _installed("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self.writer = writer(str(folder / "tensorboard"), purge_step=iteration)

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """See :class:`Logger`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, iteration)

    def picture(self, iteration: int, name: str, path: Path) -> None:
        """See :class:`Logger`."""
        pixels = np.asarray(Image.open(path).convert("RGB"))
        self.writer.add_image(name, pixels, iteration, dataformats="HWC")

    def close(self) -> None:
        """See :class:`Logger`."""
        self.writer.close()


class WandB:
    """A run at Weights & Biases, or of whatever else is installed under that name.

    Args:
        folder: The run's folder, whose name is the run's.
        project: The project's name.
        config: The run's configuration.
    """

    def __init__(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        self.wandb = _installed("wandb", "wandb")
        self.wandb.init(
            project=project,
            name=folder.name,
            id="-".join(folder.parts[-4:]),  # data set, images a class, network, run
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        # The iteration is a figure of its own: a resumed run repeats some.
        self.wandb.define_metric("*", step_metric="iteration")

    def scalars(self, iteration: int, values: Mapping[str, float]) -> None:
        """See :class:`Logger`."""
        self.wandb.log({"iteration": iteration, **values})

    def picture(self, iteration: int, name: str, path: Path) -> None:
        """See :class:`Logger`."""
        self.wandb.log({"iteration": iteration, name: self.wandb.Image(str(path))})

    def close(self) -> None:
        """See :class:`Logger`."""
        self.wandb.finish()


def make_logger(
    name: str | None, folder: Path, project: str, config: Mapping[str, Any], iteration: int
) -> Logger:
    """Give the logger a configuration names.

    Raises:
        FastmttError: It is not installed.
    """
    if name == "tensorboard":
        return TensorBoard(folder, iteration)
    return WandB(folder, project, config) if name == "wandb" else Nobody()


def check_installed(name: str | None) -> None:
    """FastmttError if the logger a configuration names is not installed."""
    if name is not None:
        _installed({"tensorboard": "torch.utils.tensorboard"}.get(name, name), name)


def _installed(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FastmttError(
            f"logger is {package}, which is not installed: pip install {package}, or leave logger "
            "out (metrics.jsonl is always written)"
        ) from None
