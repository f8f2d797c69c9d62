"""Everything of a run in one folder, and how a command ends."""

import functools
import json
import math
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import save_image

from fastmtt import __version__
from fastmtt.config import to_yaml
from fastmtt.errors import FastmttError
from fastmtt.files import replacing, write_safetensors
from fastmtt.info import processor_name
from fastmtt.options import DistillConfig
from fastmtt.progress import say

KIND = "fastmtt run 1"
_CLIP = 2.5  # standard deviations; the published programs clip their pictures so
_SMALL, _ENLARGE = 64, 4  # images below so many pixels are shown so many times as large
Main = Callable[[list[str] | None], None]


class RunFolder:
    """One run's folder: `{save_path}/{dataset}/{ipc}/{model}/{run_name}`.

    Written at once: `config.yaml`, which `--cfg` reads back, and `environment.json`.

    Args:
        config: What the run was asked for; without `run_name` the method and the time name it.

    Raises:
        FastmttError: The folder holds something already, or cannot be made.
    """

    def __init__(self, config: DistillConfig) -> None:
        check_free(config)
        self.path = _path(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").touch(exist_ok=False)  # of two at once, one gets it
        except FileExistsError:
            raise FastmttError(_taken(self.path)) from None
        except OSError as error:
            raise FastmttError(
                f"{self.path} cannot be made a run's folder ({error.strerror}); choose another "
                "save_path or run_name"
            ) from None
        with replacing(self.path / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
        with replacing(self.path / "environment.json") as temporary:
            temporary.write_text(json.dumps(environment(), indent=2) + "\n", encoding="utf-8")

    def log(self, text: str) -> None:
        """Write a line to stderr and, with the time, to `log.txt`."""
        say(text)
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one record to `metrics.jsonl`."""
        append_metrics(self.path, [record])

    def save_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> Path:
        """Write `{name}.safetensors` atomically; `files.read_safetensors` reads it with `KIND`."""
        path = self.path / f"{name}.safetensors"
        write_safetensors(path, KIND, tensors, metadata)
        return path

    def save_pt(self, name: str, tensor: Tensor) -> Path:
        """Write one tensor with `torch.save`, atomically: the layout other programs read."""
        path = self.path / name
        with replacing(path) as temporary:
            # Cloned: of a view, torch.save would write all it looks into.
            torch.save(tensor.detach().cpu().clone(), temporary)
        return path

    def save_image_grid(self, name: str, pixels: Tensor) -> Path:
        """Write a picture of images [n,C,H,W] in pixel space: ten a row, each from dark to bright.

        As the published programs show theirs: clipped to mean ± 2.5 standard deviations of all,
        small ones enlarged four times.
        """
        path = self.path / name
        with replacing(path) as temporary:
            save_image(
                _for_the_eye(pixels.detach().cpu().float()),
                temporary,
                format="PNG",
                nrow=10,
                normalize=True,
                scale_each=True,
            )
        return path


def check_free(config: DistillConfig) -> None:
    """FastmttError if the run's folder holds something already."""
    path = _path(config)
    if path.is_dir() and any(path.iterdir()):
        raise FastmttError(_taken(path))


def _path(config: DistillConfig) -> Path:
    name = config.run_name or f"{config.method}_{time.strftime('%Y%m%d-%H%M%S')}"
    return Path(config.save_path, config.dataset, str(config.ipc), config.model, name)


def _taken(path: Path) -> str:
    return f"{path} holds a run already; choose another run_name or remove it"


def append_metrics(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a folder's `metrics.jsonl`, one JSON line each; NaN becomes null."""
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for record in records:
            finite = {key: _finite(value) for key, value in record.items()}
            file.write(json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n")


def environment() -> dict[str, Any]:
    """Say on what a run runs: machine, versions, commit where the package is in a repository."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("torch", "torchvision", "numpy", "kornia", "safetensors", "triton")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "machine": platform.node(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {"fastmtt": __version__, **{name: _version(name) for name in packages}},
        "commit": _commit(Path(__file__).parent),
    }


def command(main: Main) -> Callable[..., None]:
    """Make a command of `main(argv)`: a user's mistake is one sentence, not a traceback.

    Exit codes: 2 after a `FastmttError` or a file that cannot be read or written, 130 after Ctrl-C.
    """

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> None:
        usual = warnings.formatwarning
        warnings.formatwarning = _warning
        try:
            main(argv)
        except FastmttError as error:
            print(f"fastmtt: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.filename is None:
                raise
            print(f"fastmtt: {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print(
                "fastmtt: interrupted; finished experts and the sets saved so far are kept",
                file=sys.stderr,
            )
            sys.exit(130)
        finally:
            warnings.formatwarning = usual

    return guarded


def _for_the_eye(pixels: Tensor) -> Tensor:
    std, mean = torch.std_mean(pixels)
    pixels = pixels.clamp(mean - _CLIP * std, mean + _CLIP * std)
    if pixels.shape[-1] < _SMALL:
        pixels = pixels.repeat_interleave(_ENLARGE, 2).repeat_interleave(_ENLARGE, 3)
    return pixels


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    return f"warning: {message}\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """Give the commit of the repository that tracks `folder`, `-dirty` where files differ."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None
