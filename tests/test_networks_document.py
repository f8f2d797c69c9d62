"""docs/networks.md: its tables are what the code does, and its example runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from fastmtt import info
from fastmtt.config import parse
from fastmtt.errors import NoStudentError
from fastmtt.pools import pool
from fastmtt.student import ModuleStudent, Structure, find_structure
from fastmtt.student.zoo import NETWORKS, known_names, make_network

TEXT = (Path(__file__).parents[1] / "docs/networks.md").read_text(encoding="utf-8")
LINES = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
HEAD = LINES.index(["`eval_mode`", "networks"])
ROWS = [
    (name, images, int(count.replace(" ", "")), served)
    for names, images, count, served in LINES[1:HEAD]
    for name in re.findall(r"`([\w-]+)`", names.split(" (")[0])
]


def test_every_published_network_has_a_line():
    assert {name for name, *_ in ROWS} == set(known_names())


@pytest.mark.parametrize(("name", "images", "count", "served"), ROWS)
def test_a_line_says_what_is_so(name, images, count, served):
    shape, classes = images.split(", ")
    shape = tuple(int(size) for size in shape.split("×"))
    with torch.device("meta"):
        net = make_network(name, image_shape=shape, classes=int(classes))
    assert sum(p.numel() for p in net.parameters()) == count
    compiled = isinstance(find_structure(net, shape), Structure)
    try:
        ModuleStudent(net)
    except NoStudentError:
        assert served == "evaluation only" and not compiled
    else:
        assert served == ("compiled" if compiled else "generic")


def test_the_pools():
    for mode, names in LINES[HEAD + 1 :]:
        if mode not in ("S", "C", "other"):
            assert names.split(" (")[0].split(", ") == pool(mode, "any", None)


def test_its_commands_are_read(capsys):
    commands = re.findall(r"^    python -m fastmtt\.((?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        name, *arguments = shlex.split(command.replace("\\\n", " "))
        if name == "info":
            info.main(arguments)
            assert "857 160" in capsys.readouterr().out
        else:
            asked = parse(name, arguments)
            assert asked.eval_mode in ("M", "other") or asked.protocol == "idc"


def test_a_network_of_ones_own(monkeypatch):
    monkeypatch.setitem(NETWORKS, "Shallow", None)  # taken out again afterwards
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(code, {"__name__": "example"})
    net = make_network("Shallow", image_shape=(3, 8, 8), classes=4)
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
