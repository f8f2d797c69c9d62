"""Ctrl-C and SIGTERM: they end a command where it stands, but never inside a step."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_depth = 0
_pending: list[int] = []


class Interrupted(KeyboardInterrupt):
    """Somebody asked the command to end.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def raised() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM raise `Interrupted`; a main thread's command only."""
    usual = {number: signal.signal(number, _arrived) for number in _SIGNALS}
    try:
        yield
    finally:
        _pending.clear()
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Let the block finish first: a signal that arrives within it is raised behind it.

    For what must happen as a whole: an update of several tensors, a record with its files.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if _pending and not _depth:
        raise Interrupted(_pending.pop())


def _arrived(number: int, frame: FrameType | None) -> None:
    if _depth:
        _pending[:] = [number]
    else:
        raise Interrupted(number)
