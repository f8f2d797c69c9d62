"""Processes that tests start: forked from one that has imported the package and done nothing else.

A fork of the tests' own process could use neither a GPU nor autograd's threads where that has.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

apart = multiprocessing.get_context("forkserver")
apart.set_forkserver_preload(
    ["fastmtt._C", "fastmtt.buffer", "fastmtt.distill", "fastmtt.evaluate", "sklearn.datasets"]
    + ["torchvision.utils", "processes"]
)


def command(
    main: Callable[[list[str]], None], flags: str, environment: dict[str, str]
) -> BaseProcess:
    """Start a command; it has begun when this returns. What it says goes nowhere."""
    here, there = multiprocessing.Pipe()
    process = apart.Process(target=_run, args=(main, flags.split(), environment, there))
    process.start()
    assert here.poll(60), "the process did not begin"
    return process


def _run(
    main: Callable[[list[str]], None],
    flags: list[str],
    environment: dict[str, str],
    told: Connection,
) -> None:
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    told.send("begun")
    main(flags)
