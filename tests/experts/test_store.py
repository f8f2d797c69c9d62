"""The trajectory store: what comes back, what is refused, what a killed writer leaves."""

import json
import multiprocessing
import os
import pickle
import re
import resource
import signal
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastmtt import files
from fastmtt.errors import FastmttError
from fastmtt.experts.store import KIND, TrajectoryStore, store_path
from fastmtt.files import write_safetensors

META: dict[str, Any] = {
    "names": ["w", "b"],
    "shapes": [[2, 3], [2]],
    "network": "ConvNet",
    "dataset": "digits",
    "space": {"kind": "normalised", "mean": [0.25], "std": [0.5]},
    "recipe": {"lr_teacher": 0.01, "decay": False},
    "versions": {"torch": "2.15.0"},
}


def trajectory(index: int, snapshots: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(index)
    return torch.randn(snapshots, 8, generator=generator)


@pytest.fixture
def store(tmp_path: Path) -> TrajectoryStore:
    filled = TrajectoryStore(tmp_path / "experts")
    for index in (0, 3):
        filled.write(index, trajectory(index), META)
    return filled


def raw_file(path: Path, header: dict[str, Any] | str, data: bytes = bytes(4 * 8 * 4)) -> None:
    """Write the container's bytes by hand, as its format page describes them."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def raw_header(metadata: str) -> dict[str, Any]:
    return {
        "__metadata__": {"fastmtt": metadata},
        "trajectory": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]},
    }


def test_what_was_written_comes_back(store: TrajectoryStore) -> None:
    assert store.indices() == [0, 3]
    assert store.missing(5) == [1, 2, 4]
    assert store.length(3) == 4
    assert store.meta(3) == META
    for start, stop in ((0, 3), (2, 2), (3, 1)):
        rows = store.segment(3, start, stop)
        assert torch.equal(rows[0], trajectory(3)[start])
        assert torch.equal(rows[1], trajectory(3)[stop])
        assert rows[0].untyped_storage().nbytes() == 8 * 4


def test_the_file_is_plain_safetensors(store: TrajectoryStore) -> None:
    content = (store.root / "expert_00003.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    assert header["trajectory"]["shape"] == [4, 8]
    assert json.loads(header["__metadata__"]["fastmtt"]) == {**META, "format": KIND}
    assert content[8 + size :] == trajectory(3).numpy().tobytes()


def test_a_segment_of_a_large_file_reads_two_rows(tmp_path: Path) -> None:
    rows, size = 101, 10_000_000  # 4 GB, almost all of it a hole
    store = TrajectoryStore(tmp_path)
    metadata = {**META, "shapes": [[size], [0]], "format": KIND}
    header = {
        "__metadata__": {"fastmtt": json.dumps(metadata)},
        "trajectory": {"dtype": "F32", "shape": [rows, size], "data_offsets": [0, 4 * rows * size]},
    }
    raw_file(store.path(0), header, b"")
    begin = store.path(0).stat().st_size
    with open(store.path(0), "r+b") as file:
        file.truncate(begin + 4 * rows * size)
        file.seek(begin + 4 * (70 * size + size - 1))
        file.write(struct.pack("<f", 2.5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, stop = store.segment(0, 0, 70)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert stop[-1] == 2.5 and not start.any()
    assert grown < 6 * 4 * size  # two rows mapped and two rows copied


def test_snapshots_out_of_range_are_refused(store: TrajectoryStore) -> None:
    for start, stop in ((0, 4), (-1, 2), (7, 1)):
        with pytest.raises(FastmttError, match="has snapshots 0 to 3") as refused:
            store.segment(0, start, stop)
        assert "expert_00000.safetensors" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"network": "ConvNetD4"},
        {"dataset": "CIFAR10"},
        {"space": {"kind": "normalised", "mean": [0.25], "std": [0.75]}},
        {"space": {"kind": "zca", "digest": "ab"}},
        {"recipe": {"lr_teacher": 0.02, "decay": False}},
        {"names": ["w", "c"]},
        {"shapes": [[3, 2], [2]]},
    ],
)
def test_an_expert_of_another_kind_is_refused_by_name(
    store: TrajectoryStore, change: dict[str, Any]
) -> None:
    (key,) = change
    asking = TrajectoryStore(store.root, {**META, **change})
    for ask in (lambda: asking.segment(3, 0, 1), lambda: asking.missing(4)):
        with pytest.raises(FastmttError, match=rf"expert_0000\d\.safetensors .*its {key}.*wanted"):
            ask()


def test_the_sentence_says_what_was_got_and_wanted(store: TrajectoryStore) -> None:
    asking = TrajectoryStore(store.root, {"recipe": {"lr_teacher": 0.02, "decay": False}})
    with pytest.raises(FastmttError) as refused:
        asking.length(0)
    assert str(refused.value) == (
        f"{store.root}/expert_00000.safetensors is refused: its recipe.lr_teacher is 0.01, "
        "wanted 0.02; remove it or choose another buffer_path"
    )


def test_tuples_and_unnamed_keys_do_not_matter(store: TrajectoryStore) -> None:
    asking = TrajectoryStore(store.root, {"names": ("w", "b"), "shapes": ((2, 3), (2,))})
    assert asking.length(0) == 4


def test_a_file_cut_anywhere_is_refused(store: TrajectoryStore) -> None:
    path = store.path(3)
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    lengths = {*range(12), *range(12, len(whole), 7), 8 + header, len(whole) - 1}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(FastmttError, match=r"expert_00003\.safetensors is damaged"):
            store.segment(3, 0, 1)
    path.write_bytes(whole + b"x")
    with pytest.raises(FastmttError, match=r"expert_00003\.safetensors is damaged"):
        store.segment(3, 0, 1)
    path.write_bytes(whole)
    assert torch.equal(store.segment(3, 0, 1)[1], trajectory(3)[1])


def test_foreign_files_are_refused(store: TrajectoryStore) -> None:
    path = store.path(1)
    foreign = r"expert_00001\.safetensors is a safetensors file of another program"
    damaged = r"expert_00001\.safetensors is damaged or no fastmtt trajectory"

    save_file({"trajectory": trajectory(1)}, path)
    with pytest.raises(FastmttError, match=foreign):
        store.missing(2)
    save_file({"weight": trajectory(1)}, path, metadata={"format": "pt"})
    with pytest.raises(FastmttError, match=foreign):
        store.meta(1)
    path.write_bytes(pickle.dumps([[torch.ones(3)]]))
    with pytest.raises(FastmttError, match=damaged):
        store.meta(1)
    torch.save([[torch.ones(3)]], path)
    with pytest.raises(FastmttError, match=damaged):
        store.meta(1)
    path.unlink()
    path.mkdir()
    with pytest.raises(FastmttError, match=damaged):
        store.meta(1)


def test_wrong_contents_are_refused(store: TrajectoryStore) -> None:
    good = {**META, "format": KIND}
    whole = json.dumps(raw_header(json.dumps(good)))
    path = store.path(1)

    def saying(**changes: Any) -> dict[str, Any]:
        return raw_header(json.dumps({**good, **changes}))

    cases: list[tuple[Any, str]] = [
        (saying(recipe={"lr_teacher": float("nan")}), "NaN in the header"),
        (raw_header("[" * 100_000), "damaged"),
        (raw_header("[1]"), "no JSON object"),
        (raw_header(json.dumps({k: v for k, v in good.items() if k != "space"})), "of its space"),
        (saying(shapes=[[2, 3], [3]]), "8 weights, its shapes say 9"),
        (saying(shapes="wide"), "names and shapes do not describe"),
        (saying(shapes=[[2, 3], [2.0]]), "names and shapes do not describe"),
        (whole.replace("[4, 8]", "[32]"), "wanted float32"),
        (whole.replace("[4, 8]", "[4, 2, 4]"), "wanted float32"),
        (whole.replace("F32", "I32"), "wanted float32"),
        (whole.replace("128", "NaN"), "damaged"),
        (whole.replace('"trajectory"', '"weights"'), "wanted one tensor"),
    ]
    for header, sentence in cases:
        raw_file(path, header)
        with pytest.raises(FastmttError, match=re.escape(sentence)) as refused:
            store.segment(1, 0, 1)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    raw_file(path, whole)
    assert store.length(1) == 4


def test_a_missing_expert_is_named(store: TrajectoryStore) -> None:
    with pytest.raises(FastmttError, match=r"expert_00007\.safetensors: there is no such file"):
        store.segment(7, 0, 1)
    assert TrajectoryStore(store.root / "nowhere").missing(2) == [0, 1]


def test_what_makes_no_expert_is_not_written(store: TrajectoryStore) -> None:
    diverged = trajectory(1)
    diverged[2, 5] = float("nan")
    with pytest.raises(FastmttError, match=r"expert 1 diverged.*snapshot 2 .*lower its learn"):
        store.write(1, diverged, META)
    good = trajectory(1)
    for wrong in (good.double(), good[0], good[:1], good[:, :7]):
        with pytest.raises(ValueError, match="expert 1: its"):
            store.write(1, wrong, META)
    with pytest.raises(ValueError, match="nothing of its recipe"):
        store.write(1, trajectory(1), {k: v for k, v in META.items() if k != "recipe"})
    with pytest.raises(ValueError, match="its network"):
        TrajectoryStore(store.root, META).write(1, trajectory(1), {"network": "VGG11"})
    assert store.indices() == [0, 3]


def die_writing(folder: Path) -> None:
    files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    TrajectoryStore(folder, META).write(0, torch.ones(4, 8))


def test_a_killed_writer_leaves_no_expert_and_is_cleaned_up(tmp_path: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=die_writing, args=(tmp_path,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1

    store = TrajectoryStore(tmp_path, META)
    assert store.indices() == []
    assert store.missing(2) == [0, 1]
    store.write(1, trajectory(1))
    assert [path.name for path in tmp_path.iterdir()] == ["expert_00001.safetensors"]
    assert store.missing(2) == [0]


@pytest.mark.parametrize(
    ("dataset", "model", "zca", "folder"),
    [
        ("CIFAR10", "ConvNet", True, "b/CIFAR10/ConvNet"),
        ("CIFAR10", "ConvNet", False, "b/CIFAR10_NO_ZCA/ConvNet"),
        ("CIFAR100", "ConvNet", False, "b/CIFAR100_NO_ZCA/ConvNet"),
        ("Tiny", "ConvNetD4", False, "b/Tiny/ConvNetD4"),
        ("digits", "ConvNetD2W32", True, "b/digits/ConvNetD2W32"),
    ],
)
def test_store_path_is_the_fields(dataset: str, model: str, zca: bool, folder: str) -> None:
    assert store_path("b", dataset, model, zca) == Path(folder)


def test_rows_between_which_nothing_can_be_matched_are_refused(tmp_path: Path) -> None:
    store = TrajectoryStore(tmp_path, META)
    still = trajectory(0)
    still[1] = still[0]
    store.write(0, still)
    with pytest.raises(FastmttError, match=r"expert 0 in .*expert_00000.*snapshots 0 and 1: there"):
        store.segment(0, 0, 1)
    diverged = trajectory(1)
    diverged[2, 5] = float("nan")
    write_safetensors(store.path(1), KIND, {"trajectory": diverged}, META)
    store.segment(1, 0, 1)
    with pytest.raises(FastmttError, match=r"expert 1 in .*expert_00001.* diverged: its weights"):
        store.segment(1, 1, 2)
