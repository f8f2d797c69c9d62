"""The machine as a row of facts."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import fastmtt
from fastmtt import info
from fastmtt.ops import backends

ROOT = Path(__file__).parent.parent
_BUT_RESULTS = ":(exclude)bench/results"  # rows written a moment ago are no change of the code


def facts() -> dict[str, Any]:
    """Whatever explains a time: processor, threads, versions, commit, load, allocator."""
    processor, versions = dict(info.processor()), dict(info.versions())
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor["processor"] + _family(),
        "instruction_sets": processor["instruction sets"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "malloc": _malloc(),
        "huge_pages": _huge_pages(),
        **{name.lower(): versions[name] for name in ("Python", "torch")},
        "fastmtt": fastmtt.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ".", _BUT_RESULTS)
        ),
    }


def served() -> dict[str, list[str]]:
    """The ops each backend serves, by backend."""
    ops: dict[str, list[str]] = {}
    for row in backends.table():
        ops.setdefault(row.backend, []).append(row.op)
    return ops


def _family() -> str:
    """Family and model: virtual machines like to leave the processor's name out."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""  # not Linux
    wanted = [line.split(":") for line in lines if line.startswith(("cpu family", "model\t"))][:2]
    return "".join(f", {name.strip()} {value.strip()}" for name, value in wanted)


def _malloc() -> str:
    """What in the environment changes the allocator, which decides much of the naive's time."""
    names = [
        n for n in os.environ if n.startswith("MALLOC_") or n in ("LD_PRELOAD", "GLIBC_TUNABLES")
    ]
    return " ".join(f"{name}={os.environ[name]}" for name in sorted(names)) or "default"


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "not known"
    return text.partition("[")[2].partition("]")[0]


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # not a working copy
    return done.stdout.strip()
