"""When a long computation saves what it has."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastmtt.errors import FastmttError

_SHARE = 20  # saving may take a twentieth of the time


class Pace:
    """Due a minute after the last save; later where saving takes more than a few seconds.

    `FASTMTT_CHECKPOINT_SECONDS` sets another interval.

    Raises:
        FastmttError: That variable holds no number of seconds.
    """

    def __init__(self) -> None:
        given = os.environ.get("FASTMTT_CHECKPOINT_SECONDS") or "60"
        try:
            self._seconds = float(given)
        except ValueError:
            raise FastmttError(
                f"FASTMTT_CHECKPOINT_SECONDS is {given!r}, wanted a number of seconds"
            ) from None
        self._next = time.monotonic() + self._seconds

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within the block the state is saved."""
        begin = time.monotonic()
        yield
        end = time.monotonic()
        self._next = end + max(self._seconds, _SHARE * (end - begin))
