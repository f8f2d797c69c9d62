"""Measurements in processes of their own: a time limit, and memory and failures stay apart.

What is measured is a function at the top level of a module that yields rows. It is called there,
and each row arrives here as it is made.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bench.gpu.results import Row
from bench.machine import ROOT

_GRACE = 2.0  # seconds that a process has to end by itself


def run(
    maker: Callable[..., Iterator[Row]],
    seconds: float,
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> Iterator[Row]:
    """Yield the rows of ``maker(**arguments)``; a last one, with "failed", where it broke off.

    Args:
        maker: what is called in the other process.
        seconds: after which the process is killed; rows made until then count.
        environment: variables set for that process.
        arguments: JSON-able.
    """
    process = start(maker, environment, **arguments)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pass_on, args=(process, lines), daemon=True).start()
    end = time.monotonic() + seconds
    try:
        while True:
            line = lines.get(timeout=max(end - time.monotonic(), 0.01))
            if line is None:
                break
            yield json.loads(line)
        if code := process.wait():
            yield {"failed": f"the process ended with code {code}"}
    except queue.Empty:
        yield {"failed": f"cut off after {seconds:.0f} seconds"}
    finally:
        stop(process)


def start(
    maker: Callable[..., Iterator[Row]], environment: Mapping[str, str] | None, **arguments: Any
) -> subprocess.Popen[str]:
    """Start a process that writes the rows to its stdout."""
    name = f"{maker.__module__}:{maker.__qualname__}"
    return subprocess.Popen(
        [sys.executable, "-m", __name__, name, json.dumps(arguments)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        text=True,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """End it if it has not."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pass_on(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _main(name: str, arguments: str) -> None:
    with os.fdopen(os.dup(1), "w") as channel:  # what libraries print goes to stderr
        os.dup2(2, 1)
        module, _, function = name.partition(":")
        try:
            for row in getattr(importlib.import_module(module), function)(**json.loads(arguments)):
                print(json.dumps(row), file=channel, flush=True)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print(json.dumps({"failed": reason[:300]}), file=channel, flush=True)
    os._exit(0)  # without the seconds that a GPU's libraries take to be torn down


if __name__ == "__main__":
    _main(*sys.argv[1:])
