"""A contender in a process of its own, where it is prepared, run and measured.

Processes of their own give each its environment (malloc is tuned by it) and its own peak memory.
They run one at a time. A process reads requests as lines of JSON and answers each with one line.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.machine import ROOT

_NEVER = 2**36  # bytes; a block or a free end of the heap is never that large
DEFAULT: Mapping[str, str] = {}
EAGER = "eager"  # a contender's compiler where it has none
TUNED = {
    "GLIBC_TUNABLES": f"glibc.malloc.mmap_threshold={_NEVER}:glibc.malloc.trim_threshold={_NEVER}"
}

Result = Tensor | tuple[Tensor, ...]


class Measure(NamedTuple):
    """One run.

    Attributes:
        seconds: wall clock.
        user: seconds of processor time outside the kernel, over all threads.
        system: seconds of processor time in the kernel.
        peak: bytes of resident memory, at most and in all runs so far, above the process after
            import and preparation.
    """

    seconds: float
    user: float
    system: float
    peak: int


class Failed(RuntimeError):
    """A contender's process says that it cannot, or ended."""


class Worker:
    """Our end: starts the process and passes on what it is to do; a context manager."""

    def __init__(
        self, maker: Callable[..., Any], environment: Mapping[str, str], **arguments: Any
    ) -> None:
        """Start the process, which imports on its own while others start.

        Args:
            maker: a function at the top level of a module, called there with the arguments to get
                the callable that is to be measured.
            environment: variables set for that process.
            arguments: JSON-able.
        """
        self.tuned = environment == TUNED
        self.compiles = arguments.get("compiler", EAGER) != EAGER
        self._maker = f"{maker.__module__}:{maker.__qualname__}"
        self._arguments = arguments
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def prepare(self) -> None:
        """Have it make its inputs and whatever a first call makes.

        Raises:
            Failed: it cannot.
        """
        self._ask("prepare", maker=self._maker, arguments=self._arguments)

    def run(self) -> Measure:
        """Run once."""
        return Measure(**self._ask("run"))

    def result(self) -> tuple[Tensor, ...]:
        """What the last run gave."""
        with TemporaryDirectory() as folder:
            file = str(Path(folder, "result.safetensors"))
            self._ask("save", file=file)
            tensors = load_file(file)
        return tuple(tensors[name] for name in sorted(tensors))

    def _ask(self, do: str, **more: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"do": do, **more}), file=self._process.stdin, flush=True)
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise Failed(
                f"{self._maker} ended with code {self._process.wait()} while asked to {do}"
            )
        reply = json.loads(answer)
        if "error" in reply:
            what = f"{self._maker}({self._arguments})"
            raise Failed(f"{what} failed to {do}, more on stderr: {reply['error']}")
        return reply["answer"]


class _Served:
    """The other end: what the process does when asked."""

    def __init__(self) -> None:
        self._run: Callable[[], Result] | None = None
        self._result: tuple[Tensor, ...] = ()
        self._ready = 0

    def prepare(self, maker: str, arguments: Mapping[str, Any]) -> None:
        module, _, function = maker.partition(":")
        self._run = getattr(importlib.import_module(module), function)(**arguments)
        # What preparing left free goes back to the system and the high-water mark is set back, so
        # that a rise is the runs' own. ru_maxrss would not do: it cannot be set back, and a child
        # starts with its parent's.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._ready = _status("VmRSS")

    def run(self) -> dict[str, float]:
        assert self._run is not None, "prepare comes first"
        before, start = os.times(), time.perf_counter()
        result = self._run()
        seconds, after = time.perf_counter() - start, os.times()
        self._result = result if isinstance(result, tuple) else (result,)
        return Measure(
            seconds,
            after.user - before.user,
            after.system - before.system,
            _status("VmHWM") - self._ready,
        )._asdict()

    def save(self, file: str) -> None:
        tensors = enumerate(self._result)
        save_file(
            {str(i): t.detach().clone(memory_format=torch.contiguous_format) for i, t in tensors},
            file,
        )


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: benchmarks measure memory on Linux only")


def _serve(requests: TextIO, answers: TextIO) -> None:
    torch.manual_seed(0)
    served = _Served()
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"answer": getattr(served, request.pop("do"))(**request)}
        except Exception as error:
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    # what libraries print must not get between the answers
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        _serve(sys.stdin, channel)
    os._exit(0)  # PyTorch takes longer to be torn down than most smoke runs
