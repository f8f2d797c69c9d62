"""Progress on stderr: a tqdm bar on a terminal, a plain line now and then in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")
_LINE_SECONDS = 30.0


class Meter:
    """How far something is and the time left; a context that is told of every step.

    Args:
        total: Number of steps, if known.
        desc: What is being done.
    """

    def __init__(self, total: int | None, desc: str = "") -> None:
        self.total, self.desc, self.count, self.note = total, desc, 0, ""
        self.begin = self.shown = time.monotonic()
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=desc, dynamic_ncols=True) if terminal else None

    def __enter__(self) -> Self:
        return self

    def step(self, note: str = "") -> None:
        """One step is done; `note` is shown behind the times."""
        self.count, self.note = self.count + 1, note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update()
        elif time.monotonic() - self.shown >= _LINE_SECONDS or self.count == self.total:
            self._line()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def _line(self) -> None:
        self.shown = time.monotonic()
        meter = tqdm.format_meter(
            self.count,
            self.total or 0,
            self.shown - self.begin,
            ncols=0,
            prefix=self.desc,
            postfix=self.note,
        )
        print(meter, file=sys.stderr, flush=True)


def progress(iterable: Iterable[T], total: int | None = None, desc: str = "") -> Iterator[T]:
    """Pass the items of `iterable` on, showing how far it is and the time left.

    Args:
        iterable: What is gone through.
        total: Its length, where it does not know it itself.
        desc: What is being done.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Meter(total, desc) as meter:
        for item in iterable:
            yield item
            meter.step()


def say(text: str) -> None:
    """Write one line to stderr without tearing a progress bar apart."""
    tqdm.write(text, file=sys.stderr)
