"""TensorBoard and Weights & Biases are told what the run's own files hold."""

import json
import subprocess
import sys
import types

import pytest

from fastmtt import distill
from fastmtt.errors import FastmttError
from fastmtt.loggers import Nobody, check_installed, make_logger

RUN = (
    "--dataset digits --model ConvNetD1W8 --num_experts 1 --threads 1 --train_epochs 2 "
    "--max_start_epoch 1 --expert_epochs 1 --syn_steps 2 --Iteration 3 --eval_it 2 --num_eval 1 "
    "--epoch_eval_train 2 --run_name run"
)


def distilled(tmp_path, logger):
    flags = f"{RUN} --logger {logger} --save_path {tmp_path} --buffer_path {tmp_path}/experts"
    distill.main(flags.split())
    folder = tmp_path / "digits/1/ConvNetD1W8/run"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


def test_tensorboard_shows_the_metrics_and_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, records = distilled(tmp_path, "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("loss", "lr", "accuracy"):
        told = sorted((event.step, event.value) for event in events.Scalars(name))
        kept = sorted((r["iteration"], r[name]) for r in records if name in r)
        assert told == [(step, pytest.approx(value, rel=1e-6)) for step, value in kept]
    assert [e.step for e in events.Images("distilled")] == [0, 2, 4]


@pytest.fixture
def wandb(monkeypatch):
    """Something that answers to wandb's name and writes down what it is told."""
    told = types.ModuleType("wandb")
    told.calls = []
    told.init = lambda **options: told.calls.append(("init", options))
    told.define_metric = lambda name, *, step_metric: None
    told.log = lambda values: told.calls.append(("log", values))
    told.Image = lambda path: ("image", path)
    told.finish = lambda: told.calls.append(("finish", {}))
    monkeypatch.setitem(sys.modules, "wandb", told)
    return told


def test_wandb_is_told_and_closed(tmp_path, wandb):
    _, records = distilled(tmp_path, "wandb")
    (_, options), *logged, (last, _) = wandb.calls
    assert options["project"] == "fastmtt" and options["name"] == "run" and last == "finish"
    assert options["id"] == "digits-1-ConvNetD1W8-run" and options["config"]["syn_steps"] == 2
    scalars = [values for _, values in logged if "distilled" not in values]
    assert scalars == records
    assert [v["iteration"] for _, v in logged if "distilled" in v] == [0, 2, 4]


def test_what_is_not_installed_is_said_before_anything_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(FastmttError, match="logger is wandb, which is not installed: pip install"):
        check_installed("wandb")
    with pytest.raises(SystemExit) as left:
        distilled(tmp_path, "wandb")
    assert left.value.code == 2 and "pip install wandb" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_without_a_logger_nothing_is_imported(tmp_path):
    assert isinstance(make_logger(None, tmp_path, "fastmtt", {}, 0), Nobody)
    code = "import sys, fastmtt.distill; print({'wandb', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
