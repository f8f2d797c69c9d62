"""Damaged, foreign and malicious input of every kind, given to the commands as users give it.

Each ends in one sentence that names the file or the key, with exit code 2 and no traceback; nothing
in it is run, and no file is written, changed or removed.
"""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from malformations import MARK, Case, cases
from PIL import Image

from fastmtt import buffer, distill, evaluate, report, scores
from fastmtt.distillation import Distillation
from fastmtt.experts.published import unflatten, write_published
from fastmtt.experts.store import KIND as EXPERT
from fastmtt.experts.store import TrajectoryStore
from fastmtt.files import read_safetensors, write_safetensors

NETWORK = "--dataset digits --model ConvNetD1W8 --threads 1 --dsa_strategy crop"
DISTILL = (
    f"distill {NETWORK} --num_experts 2 --expert_epochs 1 --max_start_epoch 2 --syn_steps 2 "
    "--lr_img 1 --Iteration 2 --num_eval 1 --epoch_eval_train 1 --save_path runs"
)
PUBLISHED = f"evaluate {NETWORK} --num_eval 1 --epoch_eval_train 1 --data_dir pt/images_best.pt"
TRAIN = "--model ConvNetD1W8 --threads 1 --num_experts 1 --train_epochs 1 --buffer_path new"
SCORES = f"scores {NETWORK} --networks 1 --score_epochs 0 --indices_path indices"

COMMANDS = {
    "buffer": buffer,
    "distill": distill,
    "evaluate": evaluate,
    "scores": scores,
    "report": report,
}

# What reads each kind of file: the command, and the file in it.
READERS = {
    "experts": (
        f"{DISTILL} --buffer_path experts",
        "experts/digits/ConvNetD1W8/expert_00001.safetensors",
    ),
    "experts-again": (
        f"buffer {NETWORK} --num_experts 2 --train_epochs 2 --buffer_path experts",
        "experts/digits/ConvNetD1W8/expert_00000.safetensors",
    ),
    "replay-buffer": (
        f"{DISTILL} --buffer_path replay",
        "replay/digits/ConvNetD1W8/replay_buffer_0.pt",
    ),
    "checkpoint": (
        f"{DISTILL} --buffer_path experts --run_name killed --resume",
        "runs/digits/1/ConvNetD1W8/killed/checkpoint.safetensors",
    ),
    "set": ("evaluate run --num_eval 1 --epoch_eval_train 1", "run/distilled_best.safetensors"),
    "space": ("evaluate run --num_eval 1 --epoch_eval_train 1", "run/space.safetensors"),
    "config-of-a-run": ("evaluate run --num_eval 1 --epoch_eval_train 1", "run/config.yaml"),
    "config": ("distill --cfg c.yaml", "c.yaml"),
    "published-images": (f"{PUBLISHED} --lr 0.02", "pt/images_best.pt"),
    "published-labels": (
        f"{PUBLISHED} --label_dir pt/labels_best.pt --lr 0.02",
        "pt/labels_best.pt",
    ),
    "published-lr": (
        f"{PUBLISHED} --label_dir pt/labels_best.pt --lr_dir pt/lr_best.pt",
        "pt/lr_best.pt",
    ),
    "scores": (f"{SCORES} --resume", "indices/digits_GraNd.safetensors"),
    "order": (
        f"buffer {NETWORK} --num_experts 1 --train_epochs 1 --buffer_path new "
        "--sort_method digits_GraNd --indices_path indices --ratio 0.5",
        "indices/digits_GraNd.pt",
    ),
    "archive": (f"buffer --dataset CIFAR10 --data_path cifar.npz {TRAIN}", "cifar.npz"),
    "png": (f"buffer --dataset folder --data_path tree {TRAIN}", "tree/train/b/1.png"),
    "jpeg": (f"buffer --dataset folder --data_path tree {TRAIN}", "tree/test/a/0.jpg"),
    "report-set": ("report run --out page.html", "run/distilled_last.safetensors"),
    "report-space": ("report run --out page.html", "run/space.safetensors"),
    "report-config": ("report run --out page.html", "run/config.yaml"),
    "report-metrics": ("report run --out page.html", "run/metrics.jsonl"),
    "report-environment": ("report run --out page.html", "run/environment.json"),
    "report-summary": ("report run --out page.html", "run/summary.json"),
    "report-experts": ("report run --out page.html", "run/experts.json"),
}


def _beginning(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(1000))


def _pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12345\n")


def _page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html><title>Quota exceeded</title></html>\n")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": _beginning,
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "noise": _noise,
    "git-lfs pointer": _pointer,
    "web page": _page,
    "folder": _folder,
    "missing": Path.unlink,
}
# Damages that are none: what is missing is made or left out, a log may end or begin anywhere, and
# half of a list of keys is one.
HARMLESS = {
    *((reader, "missing") for reader in READERS if reader.startswith("report-")),
    *(("experts", "missing"), ("experts-again", "missing"), ("replay-buffer", "missing")),
    *(("checkpoint", "missing"), ("png", "missing"), ("jpeg", "missing")),
    ("scores", "missing"),
    *(("png", "folder"), ("jpeg", "folder")),
    *(("report-metrics", "empty"), ("report-metrics", "cut short")),
    *(("config-of-a-run", "cut short"), ("report-config", "cut short"), ("config", "cut short")),
} - {("report-config", "missing")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One of everything, in order."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        distill.main(f"{DISTILL} --buffer_path experts --run_name done".split()[1:])
        _kill_a_run(patch)
        scores.main(SCORES.split()[1:])
    shutil.copytree(folder / "runs/digits/1/ConvNetD1W8/done", folder / "run")
    (folder / "pt").mkdir()
    for name in ("images", "labels", "lr"):
        shutil.copy(folder / "run" / f"{name}_best.pt", folder / "pt")
    (folder / "c.yaml").write_text("method: mtt\nipc: 1\nlr_lr: 1.0e-5\n")
    _write_replay_buffer(folder)
    _write_pictures(folder)
    return folder


def _kill_a_run(patch: pytest.MonkeyPatch) -> None:
    step = Distillation.step

    def last_step(self: Distillation) -> float:
        if self.iteration == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self)

    patch.setattr(Distillation, "step", last_step)
    with pytest.raises(SystemExit):
        distill.main(f"{DISTILL} --buffer_path experts --run_name killed".split()[1:])


def _write_replay_buffer(folder: Path) -> None:
    store = TrajectoryStore(folder / "experts/digits/ConvNetD1W8")
    shapes = store.meta(0)["shapes"]
    trajectories = [
        unflatten(torch.stack([*store.segment(index, 0, 1), store.segment(index, 1, 2)[1]]), shapes)
        for index in (0, 1)
    ]
    write_published(folder / "replay/digits/ConvNetD1W8", 0, trajectories)


def _write_pictures(folder: Path) -> None:
    """An archive of ten classes of 32x32 pictures, and a folder of two classes."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for split in ("train", "test"):
        for name in "ab":
            where = folder / "tree" / split / name
            where.mkdir(parents=True)
            picture.save(where / "0.jpg")
            picture.save(where / "1.png")
    jpeg = (folder / "tree/train/a/0.jpg").read_bytes()
    part = {
        "jpeg": np.frombuffer(jpeg * 10, dtype=np.uint8),
        "offsets": np.arange(11) * len(jpeg),
        "labels": np.arange(10),
    }
    arrays = {f"{split}_{name}": part[name] for split in ("train", "test") for name in part}
    np.savez(folder / "cifar.npz", classes=np.array(list("abcdefghij")), **arrays)


@pytest.fixture
def here(whole, tmp_path, monkeypatch) -> Path:
    """A copy of everything, as the current folder."""
    folder = tmp_path / "here"
    shutil.copytree(whole, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for what a run that goes on says of the machine and the time."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != "environment.json"}


def refused(argv: str | list[str], named: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence a command ends with, which must name what is wrong."""
    name, *arguments = argv.split() if isinstance(argv, str) else argv
    before = contents(Path())
    with pytest.raises(SystemExit) as stop:
        COMMANDS[name].main(arguments)
    out, err = capsys.readouterr()
    said = err.rpartition("fastmtt: ")[2]
    assert stop.value.code == 2
    assert err.count("fastmtt: ") == 1 and len(said.splitlines()) == 1
    assert "Traceback" not in err + out and "Error(" not in said
    assert named in said
    assert contents(Path()) == before
    return said


@pytest.mark.parametrize("command", sorted({command for command, _ in READERS.values()}))
def test_everything_whole_is_read(here: Path, command: str, capsys) -> None:
    name, *arguments = command.split()
    if "--cfg" in arguments:
        arguments.append("--print_config")
        with pytest.raises(SystemExit):
            COMMANDS[name].main(arguments)
        assert "ipc: 1" in capsys.readouterr().out
    else:
        COMMANDS[name].main(arguments)


@pytest.mark.parametrize(
    ("reader", "damage"),
    [(r, d) for r in READERS for d in DAMAGES if (r, d) not in HARMLESS],
)
def test_damaged_files_are_refused(here: Path, reader: str, damage: str, capsys) -> None:
    command, file = READERS[reader]
    DAMAGES[damage](here / file)
    refused(command, Path(file).name, capsys)


MINE, THEIRS = f"{DISTILL} --buffer_path experts", f"{DISTILL} --buffer_path replay"
IMAGES, LABELS = "pt/images_best.pt", "pt/labels_best.pt"
FLAGS = [
    ("no rate", f"{MINE} --lr_teacher 0", "lr_teacher is 0.0, wanted a number above 0"),
    ("rate NaN", f"{MINE} --lr_teacher nan", "lr_teacher is nan"),
    ("rate infinite", f"{MINE} --lr_img .inf", "lr_img is inf"),
    (
        "segments beyond",
        f"{MINE} --max_start_epoch 3 --num_experts 2",
        "expert_00000.safetensors was trained for 2 epochs, wanted at least 3",
    ),
    ("segments beyond theirs", f"{THEIRS} --max_start_epoch 3", "replay_buffer_0.pt"),
    ("segments beyond told", f"{MINE} --train_epochs 1", "segments end at epoch 2"),
    ("the same folder", f"{MINE} --run_name done", "done holds a run already"),
    (
        "resumed otherwise",
        f"{MINE} --run_name killed --resume --lr_img 2",
        "lr_img was 1.0, now it is 2.0",
    ),
    ("unknown key", f"{MINE} --ipcs 3", "the nearest is ipc"),
    ("unknown data set", "buffer --dataset CIFAR11", "no data set is called 'CIFAR11'"),
    ("unknown network", f"{MINE} --model ConvNetX", "ConvNetX"),
    ("unknown method", f"{MINE} --method dm", "method 'dm' is not known"),
    ("unknown operation", f"{MINE} --dsa_strategy crop_blur", "blur"),
    ("too many images", f"{MINE} --ipc 1000", "ipc is 1000"),
    ("too many held out", f"{MINE} --held_out 1000", "held_out"),
    ("held out below zero", f"{MINE} --held_out -1", "held_out is -1"),
    ("no such GPU", f"{MINE} --device cuda:99", "cuda:99"),
    ("no data", f"buffer --dataset CIFAR10 --data_path nowhere {TRAIN}", "nowhere"),
    ("buffer_path a file", f"{DISTILL} --buffer_path c.yaml", "c.yaml"),
    ("save_path a file", f"{MINE} --save_path c.yaml", "c.yaml"),
    ("nothing to evaluate", "evaluate", "evaluate wants one of"),
    ("two to evaluate", f"evaluate run --data_dir {IMAGES}", "got both"),
    ("labels of a run", f"evaluate run --label_dir {LABELS}", "label_dir"),
    ("which of theirs", f"{PUBLISHED} --lr 0.1 --which last", "which is last"),
    ("no such set", "evaluate run --which held_out", "distilled_held_out.safetensors"),
    ("no run", "evaluate tree", "tree is no run"),
    ("another data set", "evaluate run --dataset CIFAR10 --data_path cifar.npz", "space"),
    ("no rate for theirs", PUBLISHED, "comes without a learning rate"),
    ("scores again", SCORES, "digits_GraNd.pt is there already, and is not overwritten"),
    ("scores otherwise", f"{SCORES} --resume --seed 1", "holds scores made with seed 0 (now 1)"),
    ("unknown score", f"{SCORES} --score el3n", "score is el3n, wanted grand, el2n, forgetting or"),
    ("no network to score", f"{SCORES} --networks 0", "networks is 0, wanted a number at least 1"),
    ("indices_path a file", f"{SCORES} --indices_path c.yaml", "c.yaml"),
    ("scores with experts", f"{SCORES} --buffer_path x", "is a key of fastmtt.buffer and distill"),
    ("nothing to report", "report", "RUN"),
    ("report of no run", "report tree", "tree is no run"),
    ("report into a folder", "report run --out tree", "--out is the folder tree"),
    ("report unknown flag", "report run --style x", "--style"),
]


@pytest.mark.parametrize(("command", "said"), [row[1:] for row in FLAGS], ids=[r[0] for r in FLAGS])
def test_mistakes_in_flags_are_refused(here: Path, command: str, said: str, capsys) -> None:
    refused(command, said, capsys)


CASES = cases(DISTILL, PUBLISHED, TRAIN)


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_what_nobody_can_use_is_refused(here: Path, case: Case, capsys) -> None:
    _, make, command, said = case
    make()
    refused(command, said, capsys)
    assert not MARK.exists()


@pytest.mark.parametrize("weight", [float("nan"), 1.0], ids=["NaN", "standing still"])
def test_experts_with_nothing_to_match_end_a_run(here: Path, weight: float, capsys) -> None:
    for index in (0, 1):
        path = here / f"experts/digits/ConvNetD1W8/expert_{index:05d}.safetensors"
        tensors, meta = read_safetensors(path, EXPERT)
        rows = torch.full_like(tensors["trajectory"], weight)
        write_safetensors(path, EXPERT, {"trajectory": rows}, meta)
    with pytest.raises(SystemExit) as stop:
        distill.main(f"{MINE} --run_name new".split()[1:])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert said.startswith("fastmtt: expert ") and "ConvNetD1W8/expert_0000" in said
