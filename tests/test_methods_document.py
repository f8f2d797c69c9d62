"""docs/methods.md: its table is the rows, and its commands are ones."""

import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastmtt.config import parse
from fastmtt.methods import METHODS
from fastmtt.options import DistillConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (python -m fastmtt\.(?:.*\\\n)*.*)$", TEXT, re.MULTILINE)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_the_rows() -> None:
    lines = [line for line in TEXT.splitlines() if line.startswith("|")]
    head, _, *body = [cells(line) for line in lines]
    assert head == ["key", *METHODS]
    found: dict[str, dict[str, Any]] = {name: {} for name in METHODS}
    for key, *values in body:
        for name, value in zip(METHODS, values, strict=True):
            if value:
                found[name][key.strip("`")] = yaml.safe_load(value)
    usual = found.pop("mtt")
    assert usual == {key: getattr(DistillConfig(), key) for key in usual}
    assert found == {name: dict(row.choices) for name, row in METHODS.items() if name != "mtt"}
    assert set(usual) == {key for row in found.values() for key in row}


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name: Any
    name, *arguments = shlex.split(command.replace("\\\n", " "))[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse(name.removeprefix("fastmtt."), arguments)


def test_it_has_commands() -> None:
    assert len(COMMANDS) >= 12
