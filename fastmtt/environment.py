"""On what a command runs: machine, versions, commit."""

import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastmtt import __version__
from fastmtt.info import processor_name


def environment() -> dict[str, Any]:
    """Say on what a run runs: machine, versions, commit where the package is in a repository."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    packages = ("torch", "torchvision", "numpy", "kornia", "safetensors", "triton")
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": _command(),
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


def peak_memory_mb() -> float:
    """Give the most memory this process has taken, in MB: on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _command() -> list[str]:
    """Give what was typed: argv has a module's file where `python -m` has its name."""
    spec = sys.modules["__main__"].__spec__
    program = sys.argv[:1] if spec is None else ["python", "-m", spec.name]
    return [*program, *sys.argv[1:]]


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
