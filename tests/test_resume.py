"""Runs killed at random moments reach, resumed, the bits of one that nobody killed."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from processes import command

from fastmtt import buffer, distill
from fastmtt.config import parse
from fastmtt.device import load_data
from fastmtt.experts.order import write_order
from fastmtt.files import read_safetensors
from fastmtt.run import KIND

SMALL = (
    "--dataset digits --model ConvNetD1W8 --dsa_strategy crop_scale_rotate --batch_train 128 "
    "--num_experts 3 --threads 1 --held_out 20 "
)
BUFFER = SMALL + "--train_epochs 12 --mom 0.5 --decay --experts_at_once 2 "
DISTILL = SMALL + (
    "--train_epochs 6 --max_start_epoch 4 --expert_epochs 2 --syn_steps 6 --Iteration 20 "
    "--eval_it 7 --num_eval 2 --epoch_eval_train 10 --lr_img 10 --run_name run "
)


def wait(process: BaseProcess) -> int | None:
    process.join()
    return process.exitcode


def killed(
    main: Callable[[list[str]], None],
    flags: str,
    kills: int,
    length: float,
    end: int = signal.SIGKILL,
) -> int:
    """Kill a command up to so many times within `length` seconds, then let it finish."""
    chance = random.Random(f"{flags} {end}")
    done = 0
    for number in range(kills):
        # Checkpoints at every chance in every other life, only where they must be in the rest.
        process = command(main, flags, {"FASTMTT_CHECKPOINT_SECONDS": "0" if number % 2 else "60"})
        time.sleep(chance.uniform(0, length))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, end)
        status = wait(process)
        assert status in (-end, 128 + end, 0), status
        if status == 0:
            break
        done += 1
    assert wait(command(main, flags, {})) == 0
    return done


def without_times(content: dict) -> dict:
    times = {"seconds", "seconds_evaluation", "peak_memory_mb"}
    return {key: value for key, value in content.items() if key not in times}


def content(path: Path) -> object:
    """What must be equal of a file: all of it but what tells of time and place."""
    if path.name in ("log.txt", "environment.json"):
        return None
    if path.name == "config.yaml":
        lines = path.read_text().splitlines()
        return [line for line in lines if not line.startswith(("save_path", "buffer_path"))]
    if path.name == "metrics.jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name in ("summary.json", "experts.json"):
        return {**without_times(json.loads(path.read_text())), "root": ""}
    if path.name == "checkpoint.safetensors":
        tensors, metadata = read_safetensors(path, KIND)
        return {k: t.tolist() for k, t in tensors.items()}, without_times(metadata)
    return path.read_bytes()


def assert_equal(folder: Path, other: Path) -> None:
    files = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    assert files == sorted(p.relative_to(other) for p in other.rglob("*"))
    for file in files:
        if (folder / file).is_file():
            assert content(folder / file) == content(other / file), file


def run_and_kill(
    tmp_path: Path, main: Callable[[list[str]], None], flags: str, kills: int, end: int
) -> int:
    """Compare a run left alone with one that is ended again and again; give how often it was."""
    alone, ended = (
        f"{flags} --buffer_path {tmp_path / name}/experts"
        + (f" --save_path {tmp_path / name}/runs" if main is distill.main else "")
        for name in ("alone", "ended")
    )
    begin = time.monotonic()
    assert wait(command(main, alone, {})) == 0
    length = time.monotonic() - begin
    done = killed(main, f"{ended} --resume", kills, length, end)
    assert_equal(tmp_path / "alone", tmp_path / "ended")
    return done


def end_often(
    tmp_path: Path,
    main: Callable[[list[str]], None],
    flags: str,
    times: int,
    end: int,
    kills: int = 10,
) -> None:
    """Compare runs, one seed after another, until so many were ended before they were done."""
    done = turn = 0
    while done < times:
        turn += 1
        assert turn <= times + 3, f"only {done} of {turn} runs could be ended in time"
        done += run_and_kill(tmp_path / str(turn), main, f"{flags} --seed {turn}", kills, end)
    print(f"{done} of {turn} runs' processes were ended")


COMMANDS = pytest.mark.parametrize(
    ("main", "flags"), [(buffer.main, BUFFER), (distill.main, DISTILL)], ids=["buffer", "distill"]
)


@COMMANDS
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ended_runs_reach_the_bits_of_one_left_alone(tmp_path, main, flags, end):
    end_often(tmp_path, main, flags, 2, end)


def test_the_published_order_of_draws_goes_on_too(tmp_path):
    end_often(tmp_path, distill.main, f"{DISTILL} --rng published --batch_syn 4", 1, signal.SIGTERM)


SHORT = "--Iteration 12 --eval_it 5 --epoch_eval_train 5 --zca false"
METHODS = {
    # the loss is about the threshold, so that some steps are left out
    "datm": "--threshold 0.6 --current_max_start_epoch 1 --expansion_end_epoch 10 --ipc 2 "
    "--batch_syn 8 --lr_y 0.5 --lr_teacher 0.05 --expert_lr 0.02",
    "ftd": "--ema_decay 0.9",
    "pdd": "--num_intervals 2",
    "idc": "--factor 1 --inner_loop 2 --n_data 64 --lr_img 0.5",
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_go_on_with_labels_averages_and_gates(tmp_path, method):
    flags = f"{DISTILL} --method {method} {SHORT} {METHODS[method]}"
    end_often(tmp_path, distill.main, flags, 1, signal.SIGKILL, kills=3)
    (metrics,) = tmp_path.glob("1/alone/runs/digits/*/*/run/metrics.jsonl")
    steps = [r for r in map(json.loads, metrics.read_text().splitlines()) if "loss" in r]
    assert len(steps) == 13 * (1 + (method == "pdd"))
    assert len({record.get("left_out", False) for record in steps}) == 1 + (method == "datm")


def test_gsam_by_a_curriculum_goes_on_too(tmp_path):
    labels = load_data(parse("buffer", BUFFER.split())).train_labels
    write_order(tmp_path / "hard.pt", [(labels == k).nonzero().flatten() for k in range(10)])
    choices = "--rho_max 0.1 --init_ratio 0.4 --add_end_epoch 4 --rm_epoch_first 6 "
    choices += f"--rm_epoch_second 8 --sort_method {tmp_path}/hard.pt"
    end_often(tmp_path, buffer.main, f"{BUFFER} {choices}", 2, signal.SIGKILL)


@pytest.mark.slow
@COMMANDS
def test_thirty_random_moments(tmp_path, main, flags):
    end_often(tmp_path, main, flags, 30, signal.SIGKILL)
