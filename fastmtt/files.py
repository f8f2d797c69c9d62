"""Files written whole or not at all, and safetensors files that say what they are.

Every file of ours carries JSON under the metadata entry `fastmtt`, with its `format`; a reader
names the format it wants and gets one sentence where the file is damaged, foreign or of another
kind. Equal contents give equal bytes.
"""

import fcntl
import io
import json
import os
import re
import shutil
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fastmtt.errors import FastmttError

_ENTRY = "fastmtt"
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]*)\.(?P<pid>\d+)\.tmp")
_STALE_SECONDS = 3600.0  # a write takes seconds; an hour-old temporary folder has no writer left


def cache_folder() -> Path:
    """Give the folder for what can be made again: `FASTMTT_CACHE`, else ~/.cache/fastmtt."""
    return Path(os.environ.get("FASTMTT_CACHE") or "~/.cache/fastmtt").expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path, whose file takes the name `path` when the block ends well.

    Readers see the old file or the new one, never a part; the content is on disk before the name
    is. If the block raises, the temporary file is removed and `path` stays as it was. What killed
    writers left in the folder is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    # A folder of its own, because safetensors writes through a temporary file with its own name.
    folder = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.tmp")
    folder.mkdir(exist_ok=True)
    temporary = folder / path.name
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # the user's umask, which safetensors does not heed
        yield temporary
        temporary.chmod(mode)
        _to_disk(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _of_the_system(error, path) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _to_disk(path.parent)


@contextmanager
def sole_user(folder: Path, busy: str) -> Iterator[None]:
    """Hold a folder, made if need be, against other processes while the block runs.

    The hold is the system's lock on the folder itself: it ends with the process, however that
    ends, and leaves no file.

    Args:
        folder: The folder.
        busy: What to say where another process holds it.

    Raises:
        FastmttError: Another process holds it; the message is `busy`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastmttError(busy) from None
        except OSError as error:  # some network file systems lock no folders
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}): start no second process there",
                stacklevel=4,
            )
        yield
    finally:
        os.close(descriptor)


def write_pt(path: Path, value: Any) -> None:
    """Write with `torch.save`, atomically: the layout other programs read."""
    content = io.BytesIO()  # writing to a full disk, torch.save would not say that it is full
    torch.save(value, content)
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def write_safetensors(
    path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and JSON metadata to `path` atomically.

    Args:
        path: The file; its folder is created.
        kind: The format's name, stored as the metadata's `format`.
        tensors: Name to tensor; moved to the CPU and made contiguous.
        metadata: JSON-able values by name.

    Raises:
        ValueError: A metadata value holds NaN or infinity, which JSON has no words for.
    """
    # One entry, because safetensors writes several in an order that differs from run to run.
    header = {_ENTRY: json.dumps({**metadata, "format": kind}, allow_nan=False)}
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(content, temporary, metadata=header)


@contextmanager
def open_safetensors(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a file written by `write_safetensors` without reading its tensors.

    Yields:
        safetensors' handle (`get_slice`, `get_tensor`, `keys`) and the metadata as JSON values.

    Raises:
        FastmttError: The file is missing, damaged, no safetensors file, or of another kind.
    """
    try:
        handle: Any = safe_open(path, framework="pt")
        metadata = _metadata(handle.metadata() or {})
    except FileNotFoundError:
        raise FastmttError(f"{path}: there is no such file; a {kind} file was wanted") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FastmttError(
            f"{path} is damaged or no {kind} file ({one_line(error)}); "
            "delete it or put it back whole"
        ) from None
    with handle:
        if metadata.get("format") != kind:
            raise FastmttError(
                f"{path} is a safetensors file of another program or kind "
                f"(its format is {metadata.get('format')!r}); a {kind} file was wanted"
            )
        yield handle, metadata


def read_safetensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all tensors and the metadata of a file written by `write_safetensors`.

    Raises:
        FastmttError: As `open_safetensors`.
    """
    with open_safetensors(path, kind) as (handle, metadata):
        names = handle.keys()
        # Cloned: the handle's tensors lie on the mapped file, which may change under them.
        return {name: handle.get_tensor(name).clone() for name in names}, metadata


def _metadata(header: Mapping[str, str]) -> dict[str, Any]:
    """Parse our entry; a foreign file has none, or names its own format."""
    if _ENTRY not in header:
        return {"format": header.get("format")}
    metadata = json.loads(header[_ENTRY], parse_constant=_no_constant)
    if not isinstance(metadata, dict):
        raise ValueError(f"its {_ENTRY} entry is no JSON object")
    return metadata


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} in the header")


def _sweep(folder: Path) -> None:
    """Remove what killed writers left; folders of writers still alive stay."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or not path.is_dir():
            continue
        dead = match["host"] == _host() and not _alive(int(match["pid"]))
        try:
            if dead or time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path)
        except FileNotFoundError:
            continue  # another process swept it, or its writer finished


def _of_the_system(error: OSError | SafetensorError, path: Path) -> Exception:
    """Give the system's own error with the path; safetensors tells its number in words only."""
    if isinstance(error, OSError):
        number = None if error.filename else error.errno
    else:
        told = re.search(r"os error (\d+)", str(error))
        number = int(told[1]) if told else None
    return OSError(number, os.strerror(number), str(path)) if number else error


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def one_line(error: BaseException) -> str:
    """Give an error's message without its line breaks, to stand inside a sentence."""
    return " ".join(str(error).split())
