"""Our files in other programs' layouts, read back as those programs read them."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmtt import distill, export
from fastmtt.data import load
from fastmtt.experts.published import PublishedBuffer
from fastmtt.experts.store import TrajectoryStore
from fastmtt.published_sets import load_published
from fastmtt.synthetic import Synthetic, load_synthetic

SHAPES = [[4, 1, 3, 3], [4], [3, 16], [3]]
META = {
    "names": ["a", "b", "c", "d"],
    "shapes": SHAPES,
    "network": "ConvNet",
    "dataset": "digits",
    "space": {},
    "recipe": {},
    "versions": {},
}
P = 36 + 4 + 48 + 3


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrajectoryStore:
    """Twelve experts of three snapshots, one of them of four, with a gap in their numbers."""
    store = TrajectoryStore(tmp_path_factory.mktemp("experts"), META)
    for index in [*range(11), 20]:
        rows = torch.randn(
            4 if index == 3 else 3, P, generator=torch.Generator().manual_seed(index)
        )
        store.write(index, rows)
    return store


@pytest.fixture
def run(tmp_path) -> Path:
    for number, which in enumerate(("best", "last")):
        images = torch.full((10, 1, 8, 8), float(number))
        found = Synthetic(images, torch.arange(10), torch.tensor(0.03))
        found.save(tmp_path / "run" / f"distilled_{which}.safetensors", {})
    return tmp_path / "run"


def failing(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        export.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fastmtt: ")
    return last


def test_experts_come_back_from_files_of_ten_to_the_bit(store, tmp_path):
    export.main([str(store.root), "--to", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "replay_buffer_0.pt",
        "replay_buffer_1.pt",
    ]
    files = [torch.load(tmp_path / f"replay_buffer_{n}.pt") for n in (0, 1)]
    assert [len(experts) for experts in files] == [10, 2], "the remainder is not dropped"
    assert [list(tensor.shape) for tensor in files[1][0][2]] == SHAPES
    buffer = PublishedBuffer(tmp_path, META)
    assert buffer.indices() == list(range(12))
    for number, index in enumerate(store.indices()):
        assert buffer.length(number) == store.length(index)
        for ours, theirs in zip(
            store.segment(index, 0, 2), buffer.segment(number, 0, 2), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_files_hold_no_more_than_the_weights(store, tmp_path):
    (file, _) = export.export_experts(store.root, tmp_path)
    assert file.stat().st_size < 1.5 * 31 * P * 4 + 20_000


@pytest.mark.parametrize("soft", [False, True])
def test_a_set_meets_dd_rankings_contract_and_reads_back(tmp_path, soft):
    images = torch.randn(20, 1, 8, 8)
    labels = torch.randn(20, 10) if soft else torch.arange(10).repeat_interleave(2)
    Synthetic(images, labels, torch.tensor(0.03)).save(tmp_path / "set.safetensors", {})
    to = tmp_path / "out"
    export.main([str(tmp_path / "set.safetensors"), "--to", str(to)])
    assert sorted(path.name for path in to.iterdir()) == ["images.pt", "labels.pt", "lr.pt"]
    found = [torch.load(to / f"{name}.pt") for name in ("images", "labels", "lr")]
    assert torch.equal(found[0], images) and torch.equal(found[1], labels)
    assert found[1].dtype == (torch.float32 if soft else torch.int64)
    assert found[2].dim() == 0 and found[2].item() == pytest.approx(0.03)
    digits = load("digits", "data", progress=False)
    files = [to / f"{name}.pt" for name in ("images", "labels", "lr")]
    again = load_published(*files, dataset=digits)
    assert torch.equal(again.images, images) and torch.equal(again.labels, labels)
    assert torch.equal(again.lr, torch.tensor(0.03))


def test_which_set_of_a_run_is_exported(run, tmp_path):
    export.main([str(run), "--to", str(tmp_path / "best")])
    export.main([str(run), "--which", "last", "--to", str(tmp_path / "last")])
    found = [torch.load(tmp_path / which / "images.pt")[0, 0, 0, 0] for which in ("best", "last")]
    assert found == [0, 1]


@pytest.mark.parametrize("name", ["images.pt", "labels.pt", "lr.pt"])
def test_nothing_of_a_set_is_overwritten(run, tmp_path, capsys, name):
    to = tmp_path / "out"
    to.mkdir()
    (to / name).write_text("kept")
    assert f"{name} exists" in failing(capsys, run, "--to", to)
    assert [(path.name, path.read_text()) for path in to.iterdir()] == [(name, "kept")]


def test_no_buffer_is_overwritten(store, tmp_path, capsys):
    (tmp_path / "replay_buffer_1.pt").write_text("kept")
    assert "replay_buffer_1.pt exists" in failing(capsys, store.root, "--to", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["replay_buffer_1.pt"]


def test_a_damaged_expert_is_found_before_anything_is_written(store, tmp_path, capsys):
    for index in (0, 11):
        TrajectoryStore(tmp_path / "in", META).write(index, torch.randn(2, P))
    (tmp_path / "in" / "expert_00011.safetensors").write_bytes(b"hello")
    assert "expert_00011" in failing(capsys, tmp_path / "in", "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_end_in_one_sentence(run, tmp_path, capsys):
    assert "neither" in failing(capsys, tmp_path, "--to", tmp_path)
    assert "distilled_held_out" in failing(capsys, run, "--which", "held_out", "--to", tmp_path)
    assert "--to" in failing(capsys, run)
    assert "invalid choice" in failing(capsys, run, "--which", "first", "--to", tmp_path)
    assert "--too" in failing(capsys, run, "--to", tmp_path, "--too", "3")


def test_a_disk_that_is_full_leaves_nothing(store, tmp_path):
    """Files of this process may have 4096 bytes, which is what a full disk is to it."""
    done = subprocess.run(
        [sys.executable, "-m", "fastmtt.export", str(store.root), "--to", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr.strip().splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


def test_distilling_from_exported_experts_gives_the_same_set(tmp_path):
    """The old layout in place of ours: nothing but the folder differs."""
    flags = (
        "--dataset digits --model ConvNetD1W8 --threads 1 --dsa_strategy crop --num_experts 2 "
        "--expert_epochs 1 --max_start_epoch 2 --syn_steps 2 --lr_img 1 --lr_lr 1e-6 "
        "--lr_teacher 0.02 --Iteration 3 --eval_it 9 --skip_first_eva --num_eval 1 "
        "--epoch_eval_train 1 --run_name run"
    )
    sets = []
    for name in ("ours", "theirs"):
        folders = f"--buffer_path {tmp_path}/{name} --save_path {tmp_path}/runs_{name}"
        distill.main([*flags.split(), *folders.split()])
        run = tmp_path / f"runs_{name}" / "digits" / "1" / "ConvNetD1W8" / "run"
        sets.append(load_synthetic(run / "distilled_last.safetensors")[0])
        where = Path("digits", "ConvNetD1W8")
        if name == "ours":
            export.export_experts(tmp_path / "ours" / where, tmp_path / "theirs" / where)
    ours, theirs = sets
    assert torch.equal(ours.images, theirs.images) and torch.equal(ours.lr, theirs.lr)
    assert not list((tmp_path / "theirs").rglob("expert_*"))
