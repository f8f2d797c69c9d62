"""A run's folder: made once, taken up again, held by one process."""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from processes import apart

from fastmtt.config import parse
from fastmtt.environment import environment, peak_memory_mb
from fastmtt.errors import FastmttError
from fastmtt.options import DistillConfig
from fastmtt.run import append_metrics, open_run, read_metrics, settle


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    return DistillConfig(
        save_path=str(tmp_path / "runs"), dataset="digits", ipc=10, lr_lr=1e-6, run_name="first"
    )


def test_the_folder_is_the_fields_and_holds_the_configuration(tmp_path, config):
    with open_run(settle(config)) as run:
        assert run.path == tmp_path / "runs" / "digits" / "10" / "ConvNet" / "first"
    assert parse("distill", ["--cfg", str(run.path / "config.yaml")]) == config
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]


def test_without_a_name_the_method_and_the_time_name_it(config):
    method, _, when = settle(dataclasses.replace(config, run_name=None)).run_name.partition("_")
    assert method == "mtt"
    assert abs(time.mktime(time.strptime(when, "%Y%m%d-%H%M%S")) - time.time()) < 60


def test_a_folder_with_something_in_it_is_refused(config):
    with open_run(settle(config)) as run:
        pass
    with pytest.raises(FastmttError, match=r"first holds a run already; add --resume to go on"):
        settle(config)
    for file in run.path.iterdir():
        file.unlink()
    (run.path / "note.txt").write_text("no run")
    with pytest.raises(FastmttError, match="is no run's folder: it has no config.yaml"):
        settle(dataclasses.replace(config, resume=True))


def test_a_run_goes_on_only_as_it_began(tmp_path, config):
    with open_run(settle(config)):
        pass
    on = dataclasses.replace(config, resume=True)
    moved = dataclasses.replace(on, Iteration=9, data_path="moved", memory=10**6)
    with open_run(settle(moved)) as run:
        kept = parse("distill", ["--cfg", str(run.path / "config.yaml")])
    assert (kept.Iteration, kept.memory) == (9, 10**6)
    with pytest.raises(FastmttError, match=r"lr_img was 1000.0, now it is 5; leave that as it was"):
        settle(dataclasses.replace(on, lr_img=5))


def test_what_a_kill_left_of_a_first_write_is_no_run(config):
    folder = Path(config.save_path, "digits", "10", "ConvNet", "first")
    (folder / ".config.yaml.host.12.tmp").mkdir(parents=True)
    for resume in (False, True):
        assert settle(dataclasses.replace(config, resume=resume)).run_name == "first"


def test_a_finished_run_goes_on_from_its_checkpoint_or_not_at_all(config):
    on = dataclasses.replace(config, resume=True)
    with open_run(settle(config)) as run:
        run.save_checkpoint(({"images": torch.zeros(1)}, {"iteration": 8}))
        run.save_json("summary.json", {})
    with open_run(settle(on)):
        assert not (run.path / "summary.json").exists()  # until it is finished again
        run.save_json("summary.json", {})
    (run.path / "checkpoint.safetensors").unlink()
    with pytest.raises(FastmttError, match="is finished, but its checkpoint is gone"):
        settle(on)


def test_metrics_that_are_none_are_passed_over(config):
    with open_run(config) as run:
        append_metrics(run.path, [{"iteration": 0, "loss": 0.5}])
        with open(run.path / "metrics.jsonl", "ab") as file:
            file.write(b'[1]\nnull\n{"iteration": "x"}\n\xff\xfe\n{"iteration": 1, "lo')
        append_metrics(run.path, [{"evaluated": "set"}])
        run.forget_metrics(5, evaluated=False)
    assert read_metrics(run.path) == [{"iteration": 0, "loss": 0.5}, {"evaluated": "set"}]


def test_a_run_cannot_end_before_where_it_is(config):
    with open_run(settle(config)) as run:
        run.save_checkpoint(({"images": torch.zeros(1)}, {"iteration": 8}))
    on = dataclasses.replace(config, resume=True)
    with pytest.raises(FastmttError, match="Iteration is 6, but .* has done iteration 7 already"):
        settle(dataclasses.replace(on, Iteration=6))
    assert settle(dataclasses.replace(on, Iteration=7)).Iteration == 7


def test_resume_without_a_name_finds_the_one_unfinished_run(config):
    nameless = dataclasses.replace(config, run_name=None, resume=True)
    assert settle(nameless).run_name.startswith("mtt_")
    for name in ("one", "other", "two"):
        lr = 5 if name == "other" else config.lr_img
        with open_run(settle(dataclasses.replace(config, run_name=name, lr_img=lr))) as run:
            if name == "one":
                run.save_json("summary.json", {})
    assert settle(nameless).run_name == "two"
    (run.path.parent / "one" / "summary.json").unlink()
    with pytest.raises(FastmttError, match="2 unfinished runs in .* run_name: one, two"):
        settle(nameless)


def hold(config: DistillConfig, told: Connection) -> None:
    with open_run(config):
        told.send("held")
        told.recv()


def test_another_process_is_kept_out(config):
    here, there = multiprocessing.Pipe()
    holder = apart.Process(target=hold, args=(config, there))
    holder.start()
    try:
        assert here.poll(60) and here.recv() == "held"
        with (
            pytest.raises(FastmttError, match="another process runs into .*first"),
            open_run(config),
        ):
            pass
    finally:
        holder.kill()
        holder.join()
    with open_run(dataclasses.replace(config, resume=True)):
        pass


def test_a_file_in_the_way_is_named(tmp_path, config):
    (tmp_path / "runs").write_text("in the way")
    with (
        pytest.raises(FastmttError, match=r"cannot be made a run's folder \(Not a directory\)"),
        open_run(settle(config)),
    ):
        pass


def test_log_and_metrics_grow(config, capsys):
    with open_run(config) as run:
        run.log("accuracy 46.2 ± 0.8")
        run.log("second")
        run.log_metrics({"iteration": 0, "loss": 0.5})
        run.log_metrics({"iteration": 1, "loss": float("nan"), "lr": float("inf")})
        append_metrics(run.path, [{"a": "ü"}, {"b": True}])
    assert "accuracy 46.2 ± 0.8\nsecond\n" in capsys.readouterr().err
    lines = (run.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["accuracy 46.2 ± 0.8", "second"]
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 2, "lo')  # as a kill leaves it
    assert read_metrics(run.path) == [
        {"iteration": 0, "loss": 0.5},
        {"iteration": 1, "loss": None, "lr": None},
        {"a": "ü"},
        {"b": True},
    ]


@pytest.mark.parametrize("evaluated", [False, True])
def test_records_to_come_are_forgotten(config, evaluated):
    step = [{"iteration": i, "loss": 0.5} for i in range(4)]
    scored = [{"iteration": i, "accuracy": 40.0} for i in (0, 2)]
    asked = {"evaluated": "distilled set", "accuracy": 41.0}
    with open_run(config) as run:
        run.forget_metrics(0, evaluated=False)
        append_metrics(run.path, [scored[0], *step[:2], scored[1], step[2], asked, step[3]])
        run.forget_metrics(2, evaluated=evaluated)
    expected = [scored[0], *step[:2], *([scored[1]] if evaluated else []), asked]
    assert read_metrics(run.path) == expected


def test_checkpoints_and_tensors_come_back_and_leave_nothing_beside(config):
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    with open_run(config) as run:
        assert run.load_checkpoint() is None
        run.save_checkpoint(({"images": images}, {"iteration": 3}))
        tensors, metadata = run.load_checkpoint()
        assert torch.equal(tensors["images"], images.detach()) and metadata["iteration"] == 3
        run.save_pt("images_best.pt", images[1:3])
        loaded = torch.load(run.path / "images_best.pt", weights_only=True)
        assert torch.equal(loaded, images[1:3]) and loaded.untyped_storage().nbytes() == 2 * 64 * 4
        run.save_pt("lr_best.pt", torch.tensor(0.02))
        assert torch.load(run.path / "lr_best.pt", weights_only=True).shape == ()
    names = {"config.yaml", "environment.json", "checkpoint.safetensors"}
    assert {p.name for p in run.path.iterdir()} == {*names, "images_best.pt", "lr_best.pt"}


def test_the_environment_is_stated() -> None:
    facts = environment()
    assert facts["cpus"] == len(os.sched_getaffinity(0)) and facts["processor"]
    assert facts["python"].count(".") == 2 and facts["versions"]["fastmtt"]
    assert facts["threads"] == torch.get_num_threads()
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    head = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    if head:
        assert head.startswith(facts["commit"].removesuffix("-dirty"))
    else:
        assert facts["commit"] is None


def test_peak_memory_grows_with_what_is_taken():
    before = peak_memory_mb()
    taken = torch.ones(int(before * 1e6 / 4) + 25_000_000)
    assert peak_memory_mb() >= before + 50 and taken[0] == 1
