"""Configuration files: only keys with plain values, whatever lies in the file."""

import os
import time
from pathlib import Path

import pytest

from fastmtt.config_file import LARGEST, read_entries
from fastmtt.errors import FastmttError


def entries(tmp_path: Path, content: str | bytes) -> list:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_entries(path)


def refusal(tmp_path: Path, content: str | bytes) -> str:
    with pytest.raises(FastmttError) as refused:
        entries(tmp_path, content)
    sentence = str(refused.value)
    assert "c.yaml" in sentence and len(sentence.splitlines()) == 1
    return sentence


def test_entries_keep_order_lines_values_and_text(tmp_path: Path) -> None:
    found = entries(tmp_path, "ipc: 010\n# note\nlr: 1e-05\nzca: yes\ndevice: [0, 1]\nname: ~\n")
    read = [(entry.name, entry.value, entry.text, entry.line) for entry in found]
    assert read == [
        ("ipc", 8, "010", 1),
        ("lr", "1e-05", "1e-05", 3),
        ("zca", True, "yes", 4),
        ("device", [0, 1], "[0, 1]", 5),
        ("name", None, "~", 6),
    ]


def test_a_key_twice_is_there_twice(tmp_path: Path) -> None:
    assert [entry.value for entry in entries(tmp_path, "zca: False\nzca: True\n")] == [False, True]


def test_tags_run_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for tagged in (
        f"ipc: !!python/object/apply:os.system ['touch {mark}']\n",
        f"ipc: !!python/object/new:os.system ['touch {mark}']\n",
        f"!!python/object/apply:os.system ['touch {mark}']\n",
        "ipc: !!python/name:os.system ''\n",
        "ipc: !!python/module:os ''\n",
        "device: [!!python/name:os.system '']\n",
        "ipc: !foo 3\n",
        "ipc: !!binary aGVsbG8=\n",
        "ipc: !!set {a, b}\n",
    ):
        assert "wanted" in refusal(tmp_path, tagged)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n"
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "ipc: &a [*a]\n",
        "ipc: &a {x: *a}\n",
        "&a ipc: &b {*a : *b}\n",
        "<<: {ipc: 3}\n",
        "ipc: " + "[" * 20_000,
        "{" * 20_000,
        "- " * 5_000 + "a\n",
        "# " + "x" * LARGEST,
    ],
    ids=["laughs", "cycle", "map cycle", "key cycle", "merge", "deep", "braces", "dashes", "huge"],
)
def test_what_grows_or_turns_in_circles_is_refused_at_once(tmp_path: Path, content: str) -> None:
    start = time.monotonic()
    refusal(tmp_path, content)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"ipc: \xff\n", "is no YAML file in UTF-8"),
        (b"\xff\xfei\x00p\x00c\x00", "is no YAML file in UTF-8"),
        (b"\x00" * 64, "is no YAML file (unacceptable character"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "is no YAML file in UTF-8"),
        ("ipc:\t[\t3", "is no YAML file"),
        ("\tipc: 3\n", "is no YAML file (while scanning"),
        ("ipc: 3\n---\nipc: 4\n", "is no YAML file (expected a single document"),
        ("ipc: *nothing\n", "is no YAML file"),
        ("%YAML 9.9\n---\nipc: 3\n", "is no YAML file"),
        ("", "is empty"),
        ("--- 3\n", "holds no keys and values"),
        ("? [a]\n: 3\n", "line 1 has a key that is no word"),
        ("ipc: !!int abc\n", "line 1: ipc cannot be read as int"),
        ("zca: !!bool abc\n", "line 1: zca cannot be read as bool"),
        ("ipc: " + "9" * 5000, "line 1: ipc cannot be read as int"),
        ("device: [[0], [1]]\n", "line 1: device is a list, wanted one plain value"),
    ],
)
def test_what_is_no_configuration_is_said(tmp_path: Path, content: str | bytes, part: str) -> None:
    assert part in refusal(tmp_path, content)


def test_paths_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FastmttError, match="is larger than 100000 bytes"):
        read_entries(Path("/dev/zero"))
    with pytest.raises(FastmttError, match=r"cannot be read \(Is a directory\)"):
        read_entries(tmp_path)
    with pytest.raises(FastmttError, match=r"two lines cannot be read \(No such file"):
        read_entries(tmp_path / "two\nlines")
    with pytest.raises(FastmttError, match="embedded null byte"):
        read_entries(Path("a\0b"))


def test_a_pipe_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"ipc: 3\n")
    os.close(writing)
    (entry,) = read_entries(Path(f"/dev/fd/{reading}"))
    os.close(reading)
    assert (entry.name, entry.value) == ("ipc", 3)
