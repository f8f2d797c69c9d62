"""Configuration files: YAML mappings of keys to plain values, in which nothing runs or grows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fastmtt.errors import FastmttError
from fastmtt.files import one_line

LARGEST = 100_000  # bytes; published files have 500, and PyYAML reads 100 kB in a second
_YAML = "tag:yaml.org,2002:"
_SCALARS = {f"{_YAML}{name}" for name in ("null", "bool", "int", "float", "str")}
_COLLECTIONS = {f"{_YAML}seq": "a list", f"{_YAML}map": "a mapping"}
_AS_WRITTEN = {f"{_YAML}{name}" for name in ("timestamp", "value", "merge")}


@dataclass(frozen=True)
class Entry:
    """A key and its value, from a file or from a flag.

    Attributes:
        name: The key.
        value: What YAML reads: null, a bool, a number, text or a list of these.
        text: The value as it is written.
        file: The file; None for a flag.
        line: Its line in the file, from 1.
    """

    name: str
    value: Any
    text: str
    file: Path | None = None
    line: int = 0

    @property
    def place(self) -> str:
        """What to put before a sentence about the entry; nothing for a flag."""
        return f"{self.file}, line {self.line}: " if self.file else ""

    def with_value(self, value: str | int | None) -> Entry:
        """Give the entry with another text or number, or null, as its value."""
        return replace(self, value=value, text="null" if value is None else str(value))

    def renamed(self, name: str) -> Entry:
        """Give the entry under another key."""
        return replace(self, name=name)


def read_entries(file: Path) -> list[Entry]:
    """Read a file's keys in their order; one that stands twice is there twice.

    Only plain values and lists of them are constructed, so that tags run nothing and aliases
    cannot grow.

    Raises:
        FastmttError: The file cannot be read, is too large, is no YAML, or holds anything but keys
            with plain values.
    """
    try:
        root = yaml.compose(_text(file), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise FastmttError(f"{file} is no YAML file ({one_line(error)})") from None
    except RecursionError:
        raise FastmttError(f"{file} is nested too deeply, wanted lines like 'ipc: 10'") from None
    if root is None:
        raise FastmttError(f"{file} is empty, wanted keys and values")
    if not isinstance(root, yaml.MappingNode) or root.tag != f"{_YAML}map":
        raise FastmttError(f"{file} holds no keys and values, wanted lines like 'ipc: 10'")
    return [_entry(file, key, value) for key, value in root.value]


def _text(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise FastmttError(f"{file} is larger than {LARGEST} bytes: no configuration file")
        return content.decode("utf-8")
    except OSError as error:
        raise FastmttError(f"{file} cannot be read ({error.strerror})") from None
    except ValueError as error:  # a NUL in the path, or bytes that are no UTF-8
        raise FastmttError(f"{file} is no YAML file in UTF-8 ({one_line(error)})") from None


def _entry(file: Path, key: yaml.Node, value: yaml.Node) -> Entry:
    line = key.start_mark.line + 1
    if not isinstance(key, yaml.ScalarNode):
        raise FastmttError(f"{file}, line {line} has a key that is no word")
    entry = Entry(key.value, None, "", file, line)
    if isinstance(value, yaml.SequenceNode) and value.tag == f"{_YAML}seq":
        items = [_plain(entry, item) for item in value.value]
        return replace(entry, value=items, text=str(items))
    return replace(entry, value=_plain(entry, value), text=str(value.value))


def _plain(entry: Entry, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS | _AS_WRITTEN:
        got = _COLLECTIONS.get(node.tag, f"tagged {node.tag}")
        raise FastmttError(f"{entry.place}{entry.name} is {got}, wanted one plain value")
    if node.tag in _AS_WRITTEN:
        return node.value
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, KeyError) as error:
        raise FastmttError(
            f"{entry.place}{entry.name} cannot be read as {node.tag.rpartition(':')[2]} "
            f"({one_line(error)})"
        ) from None
