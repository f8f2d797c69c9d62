"""Figures as rows: one JSON line each in bench/results/, one line each in the table at the end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine

RESULTS = Path(__file__).parent / "results"
DIGITS = 4


@dataclass
class Report:
    """The rows of this run; ``smoke`` runs only print theirs."""

    smoke: bool
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, table: str, **row: Any) -> None:
        """Keep a row for the table at the end, and append it with the machine to the results."""
        self.tables.setdefault(table, []).append(row)
        if self.smoke:
            return
        line = {**row, "machine": machine.facts(), "served_by": machine.served()}
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{table}.jsonl").open("a") as file:
            file.write(json.dumps(_rounded(line)) + "\n")

    def text(self) -> str:
        """The tables as text."""
        facts = machine.facts()
        served = "; ".join(f"{name}: {', '.join(ops)}" for name, ops in machine.served().items())
        parts = ["\n".join(f"{name}: {value}" for name, value in facts.items()), f"ops by {served}"]
        parts += [f"{name}\n{_table(rows)}" for name, rows in self.tables.items()]
        kept = "smoke sizes: nothing was written" if self.smoke else f"appended to {RESULTS.name}/"
        return "\n\n".join([*parts, kept])


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _table(rows: list[dict[str, Any]]) -> str:
    """Columns aligned; what is itself a table stays in the results file."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, dict | list)} for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in flat]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(r, widths, strict=True)) for r in cells]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
