"""How a command ends: a user's mistake in one sentence, an interruption with what is kept."""

from __future__ import annotations

import argparse
import errno
import functools
import re
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NoReturn

import torch

from fastmtt import interrupts
from fastmtt.errors import FastmttError

Main = Callable[[list[str] | None], None]
_GOES_ON = "; with --resume buffer, distill, evaluate and scores go on from what was finished"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a user's mistakes like any other."""

    def error(self, message: str) -> NoReturn:
        """Say the mistake and where help is."""
        raise FastmttError(f"{message}; see {self.prog} --help")


def command(main: Main) -> Callable[..., None]:
    """Make a command of `main(argv)`: a user's mistake is one sentence, not a traceback.

    Exit codes: 2 after a `FastmttError`, a file that cannot be read or written, or want of
    memory; 130 after Ctrl-C, 143 after SIGTERM.
    """

    @functools.wraps(main)
    def guarded(argv: list[str] | None = None) -> None:
        usual = warnings.formatwarning
        warnings.formatwarning = _as_line
        in_main = threading.current_thread() is threading.main_thread()
        try:
            with interrupts.raised() if in_main else nullcontext():
                main(argv)
        except interrupts.Interrupted as signal:
            print(f"fastmtt: ended by {signal}{_GOES_ON}", file=sys.stderr)
            sys.exit(128 + signal.number)
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            print(f"fastmtt: {sentence}", file=sys.stderr)
            sys.exit(2)
        finally:
            warnings.formatwarning = usual

    return guarded


def _sentence(error: Exception) -> str | None:
    """Give what a user can mend as a sentence; None: a fault of ours, which keeps its traceback."""
    if isinstance(error, FastmttError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _FULL:
        where = error.filename or "the disk"
        return (
            f"{where} cannot be written ({error.strerror}); make room and give the command again"
            f"{_GOES_ON}"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if _is_want_of_memory(error):
        return (
            f"out of memory{_amount(str(error))}; lower batch_syn, segments, memory, batch_train, "
            f"expert_batch or experts_at_once, or end what else uses memory{_GOES_ON}"
        )
    return None


def _is_want_of_memory(error: Exception) -> bool:
    # On a CPU torch raises a plain RuntimeError that only its words tell apart.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _amount(message: str) -> str:
    wanted = re.search(r"ried to allocate (?:(\d+) bytes|([\d.]+ \wiB))", message)
    if not wanted:
        return ""
    return f" ({wanted[2] or f'{int(wanted[1]) / 2**30:.2f} GiB'} more were wanted)"


def _as_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None
) -> str:
    return f"warning: {message}\n"
