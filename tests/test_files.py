"""Atomic writes: whole or nothing, with killed writers played by killed processes."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from fastmtt.errors import FastmttError
from fastmtt.files import read_safetensors, replacing, sole_user, write_pt, write_safetensors
from fastmtt.pictures import save_image_grid

KIND = "fastmtt test 1"


def test_replacing_gives_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one"
    assert list(target.parent.iterdir()) == [target]


def test_replacing_keeps_the_old_file_when_the_writer_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def _write_half(target: Path, told: Connection) -> None:
    with replacing(target) as temporary:
        temporary.write_text("half")
        told.send("writing")
        time.sleep(60)


def _start_writer(target: Path) -> BaseProcess:
    """A process that is in the middle of writing `target` and stays there."""
    here, there = multiprocessing.Pipe()
    writer = multiprocessing.get_context("fork").Process(target=_write_half, args=(target, there))
    writer.start()
    assert here.poll(60) and here.recv() == "writing"
    return writer


def test_the_next_writer_spares_a_living_one_and_cleans_up_after_a_killed_one(
    tmp_path: Path,
) -> None:
    target, other = tmp_path / "a.txt", tmp_path / "b.txt"
    writer = _start_writer(target)
    try:
        (unfinished,) = tmp_path.iterdir()
        with replacing(other) as temporary:
            temporary.write_text("one")
        assert set(tmp_path.iterdir()) == {unfinished, other}
        writer.kill()
        writer.join()
        with replacing(other) as temporary:
            temporary.write_text("two")
        assert list(tmp_path.iterdir()) == [other]
    finally:
        writer.kill()
        writer.join()


def test_another_machines_leftovers_go_only_when_they_are_old(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    young = tmp_path / f".b.txt.elsewhere.{os.getpid()}.tmp"
    old = tmp_path / f".c.txt.elsewhere.{os.getpid()}.tmp"
    foreign = tmp_path / ".config.tmp"
    for folder in (young, old, foreign):
        folder.mkdir()
    for folder in (old, foreign):
        os.utime(folder, (time.time() - 7200,) * 2)
    with replacing(target) as temporary:
        temporary.write_text("one")
    assert set(tmp_path.iterdir()) == {target, young, foreign}


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(3, dtype=torch.int64)}
    metadata = {"list": [1, 2.5, None], "text": "µ", "nested": {"yes": True}}
    write_safetensors(tmp_path / "f.safetensors", KIND, tensors, metadata)
    back, header = read_safetensors(tmp_path / "f.safetensors", KIND)
    assert torch.equal(back["a"], tensors["a"]) and torch.equal(back["b"], tensors["b"])
    assert header == {**metadata, "format": KIND}


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {letter: letter for letter in "qwertzuiop"}
    for name in ("f", "g"):
        write_safetensors(tmp_path / name, KIND, {"a": torch.ones(2), "b": torch.ones(1)}, metadata)
    assert (tmp_path / "f").read_bytes() == (tmp_path / "g").read_bytes()


def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_safetensors(tmp_path / "f", KIND, {"a": torch.ones(1)}, {})
    assert (tmp_path / "f").stat().st_mode == ordinary.stat().st_mode


def test_nan_is_refused_on_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_safetensors(tmp_path / "f", KIND, {"a": torch.ones(1)}, {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FastmttError, match=r"nowhere\.safetensors: there is no such file"):
        read_safetensors(tmp_path / "nowhere.safetensors", KIND)


def written_on_a_full_disk(folder: Path) -> list[tuple[str | None, bool]]:
    """What each writer says where files may have 10,000 bytes, and whether it names the file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    big, said = torch.rand(1, 3, 200, 200), []
    writers: dict[str, Callable[[Path], None]] = {
        "a.pt": lambda path: write_pt(path, big),
        "a.safetensors": lambda path: write_safetensors(path, "kind", {"big": big}, {}),
        "a.png": lambda path: save_image_grid(path, big),
    }
    for name, write in writers.items():
        with pytest.raises(OSError) as caught:
            write(folder / name)
        said.append((caught.value.strerror, caught.value.filename == str(folder / name)))
    return said


def test_a_full_disk_is_named_whoever_writes(tmp_path: Path) -> None:
    """A limit on files' sizes fails writes as a full disk does; nothing half-written stays."""
    with multiprocessing.get_context("fork").Pool(1) as pool:  # the limit is that process's
        said = pool.apply(written_on_a_full_disk, (tmp_path,))
    assert said == [("File too large", True)] * 3
    assert not list(tmp_path.iterdir())


def test_a_folder_has_one_user(tmp_path: Path) -> None:
    place = tmp_path / "made"
    with (
        sole_user(place, "busy"),
        pytest.raises(FastmttError, match="busy"),
        sole_user(place, "busy"),
    ):
        pytest.fail("a second one was let in")
    with sole_user(place, "busy"):
        pass
    assert list(place.iterdir()) == []
