"""bench/gpu.sh and the pieces behind it, at tiny sizes on a CPU."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as command
from bench.gpu import (
    ceilings,
    contenders,
    launches,
    matching,
    operations,
    pieces,
    processes,
    real,
    suite,
    training,
    vectors,
)
from bench.gpu.device import seconds_each, timed
from bench.gpu.results import Results
from bench.naive import Gradients

ROOT = Path(__file__).parents[2]
PEAKS = {"fp32": 1e12, "bf16": 1e12, "copy": 1e11}
DIGITS = {
    **{"dataset": "digits", "model": "ConvNetD1W8", "zca": "false", "dsa": "false", "ipc": 1},
    **{"max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 1},
    **{"num_eval": 1, "epoch_eval_train": 1, "eval_it": 10**5},
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """What FASTMTT_BENCH=smoke makes of the sizes, and less: the interpreter is slow."""
    for module in (matching, training):
        monkeypatch.setattr(module, "WIDTH", 4)
        monkeypatch.setattr(module, "SECONDS", 0.01)
    for module in (operations, pieces):
        monkeypatch.setattr(module, "WIDTH", 16)
        monkeypatch.setattr(module, "LAYERS", {"first": (4, 3), "second": (4, 16)})
        monkeypatch.setattr(module, "SIZES", [(1, 1)])
        monkeypatch.setattr(module, "seconds_each", lambda runs, _: (timed(runs[0], 0, 1)[0], ""))
    monkeypatch.setattr(operations, "COLD", 1)
    monkeypatch.setattr(training, "SMOKE", True)
    monkeypatch.setattr(matching, "SEEDS", 1)
    monkeypatch.setattr(matching, "WORKS", [matching.Work(2, 2, 1), matching.Work(2, 2, 2)])
    monkeypatch.setattr(ceilings, "SIDE", 16)
    monkeypatch.setattr(ceilings, "COPIED", 1024)
    monkeypatch.setattr(ceilings, "SECONDS", 0.0)


def failures(rows):
    return [row for row in rows if "failed" in row]


def numbers(precision, folder):
    """Of one size by every contender that needs nothing special."""
    for name in ("naive", *contenders.OURS, "torch.func", "tesla, two passes"):
        yield from matching.measure(name, precision, str(folder), 1e12)


def test_the_script_is_a_shells_and_says_how_to_use_it():
    script = ROOT / "bench" / "gpu.sh"
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    wrong = subprocess.run(["sh", script], capture_output=True, text=True)
    assert wrong.returncode == 2 and "OUTDIR" in wrong.stderr


def test_results_are_on_the_disk_as_they_come_and_in_a_table(tmp_path, capsys):
    results = Results(tmp_path, {"device": "none"})
    results.add("ops", {"table": "a", "us": 1.23456789, "op": "x|y"})
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines[0]["device"] == "none" and lines[1]["us"] == 1.23456789
    text = results.finish()
    assert "| 1.235 | x/y |" in text and (tmp_path / "table.md").read_text() == text


def one_row_then_sleep(pause):
    yield {"first": 1}
    time.sleep(pause)
    raise ValueError("no more")


def test_a_process_is_cut_off_at_its_limit_with_its_rows_kept(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    rows = list(processes.run(one_row_then_sleep, 120, pause=0))
    assert rows == [{"first": 1}, {"failed": "ValueError: no more"}]
    assert "cut off" in list(processes.run(one_row_then_sleep, 0.1, pause=60))[-1]["failed"]


def test_ceilings_are_found_again_by_precision():
    peaks = ceilings.by_precision(list(ceilings.measure()))
    assert set(peaks) == {"copy", *ceilings.PRECISIONS} and min(peaks.values()) > 0


def test_the_time_of_one_of_several_runs():
    seconds, how = seconds_each([lambda: time.sleep(0.01)] * 3, 0.05)
    assert 0.01 <= seconds < 0.1 and how == "called"


def test_every_op_of_both_backends_agrees_and_has_its_figures():
    rows = [
        *operations.measure(["first"], ["fp32"], PEAKS),
        *operations.measure(["second"], ["bf16"], PEAKS),
    ]
    assert not failures(rows)
    assert {row["backend"] for row in rows} == {"reference", "triton"}
    assert {row["op"] for row in rows if row["layer"] == "first"} < {row["op"] for row in rows}
    assert all(0 <= row["error"] < 0.01 and row["us"] > 0 for row in rows)


def test_flat_vectors_heads_and_dsa_agree_and_have_their_bandwidth(monkeypatch):
    monkeypatch.setattr(vectors, "VECTORS", [(2, 100)])
    monkeypatch.setattr(vectors, "HEADS", [(2, 3, 4)])
    monkeypatch.setattr(vectors, "FEATURES", 16)
    monkeypatch.setattr(vectors, "AUGMENTED", [(1, 2, 4)])
    rows = list(vectors.measure(PEAKS))
    done = [row for row in rows if row["backend"] != "cuda" or torch.cuda.is_available()]
    assert not failures(done) and len(done) >= 2 * (7 + 2 * 4 + 2 * 3)
    assert all(row["of_copy"] > 0 and "tflops" not in row for row in done)
    lacking = [row for row in rows if row not in done]
    assert all("GPU" in row["failed"] or "CUDA" in row["failed"] for row in lacking)


def test_sanitizers_that_cannot_run_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(suite.backends, "cuda_error", lambda: "torch finds no GPU")
    rows = list(suite.sanitize(tmp_path, 1))
    assert [(row["tool"], row["failed"]) for row in rows] == [
        ("memcheck", "torch finds no GPU"),
        ("racecheck", "torch finds no GPU"),
    ]


@pytest.mark.parametrize("code", [0, 9])
def test_what_a_sanitizer_tells_is_a_row(code, monkeypatch, tmp_path):
    tool = tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\necho '== ERROR SUMMARY: {code} errors'\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(suite.backends, "cuda_error", lambda: None)
    monkeypatch.setattr(suite.shutil, "which", lambda name: str(tool))
    rows = list(suite.sanitize(tmp_path, 60))
    key = "failed" if code else "told"
    assert [row[key] for row in rows] == [f"== ERROR SUMMARY: {code} errors"] * 2


def test_an_op_that_is_wrong_is_reported_and_not_timed(monkeypatch):
    from fastmtt import kernels

    forward = {"forward": operations.calls("second", 1, 1)["forward"]}
    monkeypatch.setattr(operations, "calls", lambda *_: forward)
    right = kernels.conv_block
    monkeypatch.setattr(
        kernels, "conv_block", lambda *args, **more: [1.01 * t for t in right(*args, **more)]
    )
    rows = list(operations.measure(["second"], ["fp32"], PEAKS))
    (wrong,) = failures(rows)
    assert (wrong["op"], wrong["backend"]) == ("forward", "triton")
    assert "disagrees" in wrong["failed"] and "us" not in wrong


def test_single_kernels_agree_with_plain_torch():
    rows = [
        *pieces.measure(["first"], ["fp32"], PEAKS),
        *pieces.measure(["second"], ["bf16"], PEAKS),
    ]
    assert not failures(rows)
    assert len([row for row in rows if row["by"] == "ours"]) == 2 + 6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_contender_of_a_matching_step_agrees(precision, tmp_path):
    rows = list(numbers(precision, tmp_path))
    assert not failures(rows)
    assert len(rows) == 3 + 2 * len(contenders.OURS)  # ours with two segments at once as well
    assert all(row["apart"] is None or row["apart"] < 0.05 for row in rows)


def test_a_contender_with_another_gradient_is_not_timed(tmp_path, monkeypatch):
    list(matching.measure("naive", "fp32", str(tmp_path), 1e12))
    right = contenders.contender

    def wrong(name, *args, **more):
        run = right(name, *args, **more)
        if name != "torch.func":
            return run
        return lambda: Gradients(*(t.flip(0) if t.dim() else t for t in run()))

    monkeypatch.setattr(matching, "contender", wrong)
    (row,) = matching.measure("torch.func", "fp32", str(tmp_path), 1e12)
    assert "less precise" in row["failed"] and "ms" not in row
    monkeypatch.setattr(matching, "judge", lambda *_: {"error": 0.0, "torch_error": 0.0})
    (row,) = matching.measure("torch.func", "fp32", str(tmp_path), 1e12)
    assert "disagrees at this size" in row["failed"] and "ms" not in row


def test_training_is_compared_with_plain_torch():
    rows = [*training.buffer(None), *training.evaluation(None)]
    assert not failures(rows)
    assert {row.get("contender") for row in rows} == {"naive", "ours", None}
    assert all(row["apart"] < 0.05 for row in rows if "apart" in row)


def test_experts_that_go_elsewhere_are_refused(monkeypatch):
    monkeypatch.setattr(training, "_end_of", lambda job, theta, *_: theta)
    with pytest.raises(ArithmeticError, match="of their way apart"):
        list(training.buffer(None))


def test_real_images_come_from_an_archive():
    archive = ROOT.parent / "shared" / "data" / "cifar10_jpeg.npz"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} beside the repository")
    examples, source = training.load(str(archive))
    assert source == archive.name and examples.images.shape == (16, 3, 32, 32)
    assert abs(float(examples.images.mean())) < 1e-5 and int(examples.labels.min()) >= 0


@pytest.mark.slow
def test_a_real_run_stops_at_its_limit_and_goes_on(tmp_path):
    plan = real.Plan(
        Path("none"),
        tmp_path,
        1,
        1,
        10**6,
        tuple(f"--{name}={value}" for name, value in DIGITS.items()),
    )
    (first,) = real.run(plan, tmp_path / "log", 60)
    assert "interrupted" in first["state"] and first["experts"] == 1
    assert first["iterations"] > 0
    shorter = plan._replace(iterations=first["iterations"] + 5)
    (second,) = real.run(shorter, tmp_path / "log", 120)
    assert second["state"] == "finished", (tmp_path / "log").read_text()
    assert second["iterations"] == shorter.iterations and second["s of all calls"] > second["s"]


def test_tests_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "SMOKE", True)
    (row,) = suite.run(tmp_path, 300)
    assert row["passed"] > 5 and "failed" not in row


def test_a_call_runs_its_section_and_leaves_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "buffer", one_row_then_sleep)
    monkeypatch.setattr(command.processes, "run", lambda *_, **__: iter([{"images_a_s": 5.0}]))
    assert command.main([str(tmp_path), "--only", "buffer", "--limit", "60"]) == 0
    assert "| 5 |" in (tmp_path / "table.md").read_text()
    assert torch.get_num_threads() >= 1


def test_section_real_asks_for_images(tmp_path):
    command.main([str(tmp_path), "--only", "real"])
    assert "--images" in (tmp_path / "results.jsonl").read_text()


def test_what_follows_the_dashes_is_for_the_command(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(real, "run", lambda plan, *_: plans.append(plan) or [])
    images = tmp_path / "cifar10.npz"
    images.touch()
    flags = ["--eval_it", "50", "--zca", "false"]
    given = [str(tmp_path), "--only", "real", "--images", str(images), "--", *flags]
    command.main(given)
    (plan,) = plans
    assert list(plan.more) == flags and plan.command()[-4:] == flags


def test_launches_are_counted_by_sweep():
    """Two graphs, the forward sweep first, and a launch by itself."""

    def event(ts, correlation, name="k", dur=3.0):
        return {"ts": ts, "name": name, "dur": dur, "args": {"correlation": correlation}}

    forward = [event(t, 7) for t in range(2 * launches.STEPS)]
    adjoint = [event(100 + t, 8, "j", 5.0) for t in range(3 * launches.STEPS)]
    events = [*forward, *adjoint, event(200, 9)]
    rows = list(launches._launches(events, 4))
    assert [row["sweep"] for row in rows] == ["forward", "adjoint"]
    assert [row["launches_a_step"] for row in rows] == [2, 3]
    assert [row["busy_us_a_step"] for row in rows] == [6, 15]
    kernels = {row["kernel"]: row["us_a_step"] for row in launches._kernels(events, 4)}
    assert kernels == {"j": 15, "k": pytest.approx(6.3)}
