"""How much memory there is, so that what cannot fit is said before it is begun."""

import os
from pathlib import Path

from fastmtt.errors import FastmttError

_MEMINFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")


def available() -> int:
    """Bytes that can be taken without swapping: the system's estimate, or a container's limit.

    Where the system gives no estimate (macOS), all of its memory counts.
    """
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(free, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or no limit ("max")
        return free


def require(needed: int, what: str, remedy: str) -> None:
    """Refuse what does not fit.

    Args:
        needed: Bytes.
        what: What takes them, as a sentence's subject.
        remedy: What to do instead.

    Raises:
        FastmttError: Less is available.
    """
    there = available()
    if needed > there:
        raise FastmttError(
            f"{what} would take {_gigabytes(needed)} of memory and {_gigabytes(there)} are "
            f"available; {remedy}"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
