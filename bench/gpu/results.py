"""Results as they come: a line of JSON each, at once on the disk, and one table at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DIGITS = 4
LONGEST = 2**23  # bytes of a log
Row = dict[str, Any]


class Results:
    """The rows of one call, in ``results.jsonl`` and ``table.md`` of a folder.

    Attributes:
        rows: all rows so far, each with its section.
    """

    def __init__(self, folder: Path, facts: Row) -> None:
        """Begin with the machine's facts; rows of an earlier call in that folder stay in the file.

        Args:
            folder: made where it is missing.
            facts: what explains the figures.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.facts = folder, facts
        self.rows: list[Row] = []
        self._write({"section": "machine", **facts})

    def add(self, section: str, row: Row) -> None:
        """Write a row so that it stays whatever happens next, and show it."""
        self.rows.append({"section": section, **row})
        self._write(self.rows[-1])
        shown = ", ".join(f"{name} {cell(value)}" for name, value in row.items())
        print(f"[{section}] {shown}", flush=True)

    def finish(self) -> str:
        """Write the table and give its text; of a long log the end is kept."""
        sections = list(dict.fromkeys(row["section"] for row in self.rows))
        parts = ["; ".join(f"{name}: {value}" for name, value in self.facts.items())]
        for section in sections:
            rows = [row for row in self.rows if row["section"] == section]
            parts += [f"## {section}", *tables(rows)]
        text = "\n\n".join(parts) + "\n"
        (self.folder / "table.md").write_text(text)
        for log in self.folder.glob("*.log"):
            if log.stat().st_size > LONGEST:
                log.write_bytes(log.read_bytes()[-LONGEST:])
        return text

    def _write(self, row: Row) -> None:
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def tables(rows: Iterable[Row]) -> list[str]:
    """As Markdown, rows of the same kind in one table; what failed is in a column of its own."""
    kinds: dict[Any, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.get("table"), []).append(row)
    return [_table(kind) for kind in kinds.values()]


def _table(rows: list[Row]) -> str:
    left_out = ("section", "table")
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in left_out]
    lines = [names, ["---"] * len(names), *([cell(row.get(n)) for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value with few digits; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}"
    return str(value).replace("|", "/").replace("\n", " ")
