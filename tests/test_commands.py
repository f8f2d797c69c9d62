"""What users do: the commands, on the digits, at a size of seconds."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmtt import buffer, distill, evaluate
from fastmtt.experts.store import TrajectoryStore
from fastmtt.synthetic import load_synthetic

TINY = "--dataset digits --model ConvNetD1W8 --threads 1 --batch_train 256 --dsa_strategy crop"
DISTILL = (
    f"{TINY} --num_experts 2 --expert_epochs 1 --max_start_epoch 2 --syn_steps 3 --lr_img 1 "
    "--lr_lr 1e-6 --lr_teacher 0.02 --Iteration 3 --eval_it 2 --num_eval 2 --epoch_eval_train 5"
)


def distilled(folder: Path, name: str, more: str = "") -> Path:
    flags = f"{DISTILL} --save_path {folder} --buffer_path {folder}/experts --run_name {name}"
    distill.main([*flags.split(), *more.split()])
    return folder / "digits" / "1" / "ConvNetD1W8" / name


def failing(capsys, command, flags: str) -> str:
    """The sentence a command ends with; its exit code must be 2."""
    with pytest.raises(SystemExit) as stop:
        command(flags.split())
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fastmtt: ") and "Traceback" not in last
    return last


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return distilled(tmp_path_factory.mktemp("run"), "first")


def records(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    timeless = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in timeless]


def last_set(run: Path) -> bytes:
    return (run / "distilled_last.safetensors").read_bytes()


def test_buffer_stores_the_initialisation_and_every_epoch(tmp_path):
    buffer.main(f"{TINY} --num_experts 2 --train_epochs 2 --buffer_path {tmp_path}".split())
    store = TrajectoryStore(tmp_path / "digits" / "ConvNetD1W8")
    assert store.indices() == [0, 1] and store.length(0) == 3
    first, second = store.segment(0, 0, 1)
    other, _ = store.segment(1, 0, 1)
    assert not torch.equal(first, second) and not torch.equal(first, other)
    assert store.meta(0)["network"] == "ConvNetD1W8" and 0 < store.meta(0)["test_accuracy"] < 1


def test_buffer_trains_only_what_is_missing_and_to_the_same_bits(tmp_path):
    flags = f"{TINY} --num_experts 3 --train_epochs 1 --buffer_path {tmp_path}".split()
    buffer.main(flags)
    store = TrajectoryStore(tmp_path / "digits" / "ConvNetD1W8")
    kept, lost = store.path(0), store.path(1)
    bits, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    buffer.main(flags)
    assert lost.read_bytes() == bits and kept.stat().st_mtime_ns == stamp


def test_buffer_refuses_to_mix_recipes(tmp_path, capsys):
    flags = f"{TINY} --num_experts 1 --train_epochs 1 --buffer_path {tmp_path}"
    buffer.main(flags.split())
    said = failing(capsys, buffer.main, f"{flags} --lr_teacher 0.5")
    assert "lr_teacher" in said and "expert_00000" in said


def test_too_short_experts_are_refused_before_anything_is_trained(tmp_path, capsys):
    flags = f"{TINY} --num_experts 2 --buffer_path {tmp_path}"
    buffer.main(f"{flags} --train_epochs 1".split())
    assert "1 epochs" in failing(capsys, buffer.main, f"{flags} --train_epochs 5")
    said = failing(
        capsys, distill.main, f"{DISTILL} --buffer_path {tmp_path} --save_path {tmp_path}"
    )
    assert "wanted at least 2" in said


def test_a_distillation_takes_experts_of_any_recipe_but_adds_none_of_another(tmp_path, capsys):
    experts = f"--buffer_path {tmp_path}/experts"
    made = f"{TINY} {experts} --num_experts 2 --train_epochs 2 --mom 0.9 --lr_teacher 0.03"
    buffer.main(made.split())
    assert last_set(distilled(tmp_path, "any", experts))
    said = failing(capsys, distill.main, f"{DISTILL} {experts} --num_experts 3")
    assert "num_experts to the 2 experts there" in said


def test_a_mistake_does_not_use_up_the_run_name(tmp_path, capsys):
    where = f"--save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name one"
    failing(capsys, distill.main, f"{DISTILL} {where} --ipc 500")
    run = distilled(tmp_path, "one")
    assert (run / "distilled_last.safetensors").is_file()
    assert "holds a run already" in failing(capsys, distill.main, f"{DISTILL} {where}")


@pytest.mark.parametrize("damage", ["nan", "labels", "double"])
def test_a_damaged_set_is_not_evaluated(run, tmp_path, capsys, damage):
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    file = copy / "distilled_best.safetensors"
    found, meta = load_synthetic(file)
    if damage == "nan":
        found.images[0] = float("nan")
    elif damage == "labels":
        found.labels += 5
    else:
        found.images = found.images.double()
    found.save(file, {"network": meta["network"]})
    assert "distilled_best.safetensors" in failing(capsys, evaluate.main, str(copy))


def test_a_run_keeps_everything_in_one_folder(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "log.txt",
        "checkpoint.safetensors",
        "space.safetensors",
        "distilled_best.safetensors",
        "distilled_last.safetensors",
        "images_best.png",
        "images_best.pt",
        "labels_best.pt",
        "lr_best.pt",
    }
    images, labels, lr = (
        torch.load(run / f"{name}_best.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    )
    assert images.shape == (10, 1, 8, 8) and labels.tolist() == list(range(10)) and lr.dim() == 0
    best, _ = load_synthetic(run / "distilled_best.safetensors")
    assert torch.equal(best.images, images)


def test_iterations_are_counted_as_published_and_the_last_iterate_is_evaluated(run):
    found = records(run)
    assert [r["iteration"] for r in found if "loss" in r] == [0, 1, 2, 3]
    assert [r["iteration"] for r in found if "accuracy" in r and "iteration" in r] == [0, 2, 4]
    assert all(0 < r["loss"] < 10 for r in found if "loss" in r)


def test_two_runs_with_one_seed_are_equal_to_the_bit(run, tmp_path):
    again = distilled(tmp_path, "again")
    assert records(again) == [r for r in records(run) if "evaluated" not in r]
    for name in ("distilled_last", "distilled_best"):
        file = f"{name}.safetensors"
        assert (again / file).read_bytes() == (run / file).read_bytes()
    other = distilled(tmp_path, "other", f"--seed 1 --buffer_path {run.parents[3]}/experts")
    assert last_set(other) != last_set(run)


@pytest.mark.parametrize(
    "choice", ["--gradient tesla", "--gradient 2", "--segments 2", "--rng published", "--no_aug"]
)
def test_other_choices_change_the_result(run, tmp_path, choice):
    other = distilled(tmp_path, "other", f"{choice} --buffer_path {run.parents[3]}/experts")
    assert last_set(other) != last_set(run)


@pytest.mark.usefixtures("extension")  # plain torch keeps more
def test_memory_changes_no_bit(run, tmp_path, capsys):
    # one block keeps nothing, so this needs two
    experts = f"--model ConvNetD2W8 --device cpu --buffer_path {tmp_path}/experts"
    said, sets = [], set()
    for memory in ("0", "10000", "null"):
        distilled(tmp_path, f"m{memory}", f"{experts} --memory {memory}")
        said += re.findall("keeps (.*) of its steps", capsys.readouterr().err)
        folder = tmp_path / "digits" / "1" / "ConvNetD2W8" / f"m{memory}"
        sets.add((folder / "distilled_last.safetensors").read_bytes())
    assert len(sets) == 1
    # the pooled cotangents of 3 steps of 10 images, each 4 x 4 x 8 floats: 5.12 kB a step
    assert said == ["0.00B of 15.4kB", "5.12kB of 15.4kB", "15.4kB of 15.4kB"]


def test_evaluate_prints_one_table(run, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "REAL_STEPS", 150)
    evaluate.main([str(run), "--compare", "--num_eval", "2", "--epoch_eval_train", "5"])
    out = capsys.readouterr().out
    assert "450 test images of digits" in out
    for row in ("distilled set (best)", "random real images", "all real training images"):
        (line,) = [line for line in out.splitlines() if line.startswith(row)]
        assert "±" in line and "%" in line
    assert records(run)[-1]["evaluated"] == "all real training images"


def test_evaluating_a_run_at_its_own_settings_finds_the_accuracy_it_logged(run):
    logged = [r["accuracy"] for r in records(run) if "loss" not in r and "iteration" in r][-1]
    file = str(run / "distilled_last.safetensors")
    evaluate.main([file, "--num_eval", "2", "--epoch_eval_train", "5"])
    last = records(run)[-1]
    assert last["accuracy"] == logged and last["evaluated"] == "distilled set (last)"


def test_a_run_that_goes_astray_says_so_and_keeps_what_was_good(tmp_path, capsys):
    flags = f"{DISTILL} --save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name bad"
    said = failing(capsys, distill.main, f"{flags} --lr_lr 1e9")
    assert "went astray" in said and "lower lr_img or lr_lr" in said
    assert (tmp_path / "digits/1/ConvNetD1W8/bad/distilled_best.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--method mt", "mt"),
        ("--model ConvNetD9W8", "depth"),
        ("--model ResNet99", "ResNet99"),
        ("--model ConvNetD1W8BN", "BatchNorm2d in training mode, whose running statistics"),
        ("--dataset digit", "digits"),
        ("--dsa_strategy colour", "colour"),
        ("--device cuda:7", "device"),
        ("--ipc 5000", "ipc"),
        ("--train_epochs 1", "train_epochs"),
        ("--backend fast", "backend"),
        ("--precision tf32 --device cpu", "precision"),
        ("--max_experts 3", "num_experts"),
        ("--seed 99999999999999999999999", "seed"),
        ("--syn_step 3", "syn_steps"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, capsys, flags, words):
    base = f"{DISTILL} --save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name bad"
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert words in failing(capsys, distill.main, f"{base} {flags}")


def test_evaluate_refuses_what_is_no_run(tmp_path, capsys):
    assert "is no run" in failing(capsys, evaluate.main, str(tmp_path))


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_commands_start_from_the_shell(tmp_path, capsys, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "fastmtt.distill", "--cfg", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("fastmtt: ") and "none.yaml" in done.stderr
    for command in ("buffer", "distill", "evaluate", "scores"):  # as `python -m` does it
        monkeypatch.setattr(sys, "argv", [command, "--help"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"fastmtt.{command}", run_name="__main__", alter_sys=True)
        assert stop.value.code == 0 and "--dataset" in capsys.readouterr().out
