"""Peak memory of one call, measured in a process of its own.

``python -m bench.memory MODULE:FUNCTION JSON`` calls FUNCTION with the keyword arguments to get the
callable, then runs that once and prints by how many bytes its resident memory rose at most.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.problem import Size, contender, make_problem

ROOT = Path(__file__).parent.parent


def peak_bytes(maker: Callable[..., Callable[[], Any]], **arguments: Any) -> int:
    """Peak resident memory of ``maker(**arguments)()`` above what the process held before the call.

    Imports and inputs are in place by then, and a tiny call of its kind has loaded what PyTorch
    loads at a first call.

    Args:
        maker: a function at the top level of a module; its arguments must be JSON-able.

    Raises:
        RuntimeError: the process failed; the message is its own.
    """
    name = f"{maker.__module__}:{maker.__qualname__}"
    command = [sys.executable, "-m", "bench.memory", name, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name}({arguments}) failed: {done.stderr}")
    return int(done.stdout.splitlines()[-1])


def matching_step(name: str, steps: int, batch: int, width: int) -> Callable[[], Any]:
    """A matching step by a contender's name and size."""
    contender(name, make_problem(Size(1, 2, 8)))()
    return contender(name, make_problem(Size(steps, batch, width)))


def _rise(run: Callable[[], Any]) -> int:
    """Highest resident memory during ``run`` above the one before it, in bytes; Linux only.

    The high-water mark of the process is set back first. ru_maxrss would not do: it cannot be set
    back, and a child starts with its parent's.
    """
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: peak memory is measured on Linux only")


if __name__ == "__main__":
    torch.manual_seed(0)
    module, _, function = sys.argv[1].partition(":")
    prepare = getattr(importlib.import_module(module), function)
    print(_rise(prepare(**json.loads(sys.argv[2]))))
