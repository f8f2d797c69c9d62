"""A whole distillation by the command people use; stopped at a time limit, later gone on with."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu.device import DEVICE
from bench.gpu.results import Row
from bench.machine import ROOT

CONFIG = "configs/mtt/cifar10_ipc10.yaml"
NEEDED = ("jsonargparse", "docstring_parser", "kornia", "yaml", "tqdm", "matplotlib", "jinja2")
_TO_END = 25.0  # seconds in which an interrupted command writes its checkpoint


class Plan(NamedTuple):
    """What is distilled.

    Attributes:
        archive: the images, an .npz of JPEG files.
        folder: of experts and run; a later call goes on there.
        experts: how many.
        epochs: of each.
        iterations: outer ones.
        more: further flags of the command.
    """

    archive: Path
    folder: Path
    experts: int = 100
    epochs: int = 21
    iterations: int = 5000
    more: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """What is run."""
        given: dict[str, Any] = {
            "cfg": ROOT / CONFIG,
            "data_path": self.archive.resolve(),
            "buffer_path": self.folder.resolve() / "buffers",
            "save_path": self.folder.resolve() / "runs",
            "run_name": "real",
            "device": DEVICE,
            "num_experts": self.experts,
            "train_epochs": self.epochs,
            "Iteration": self.iterations - 1,  # the last one's number, as in the field
            "resume": "true",
        }
        flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return [sys.executable, "-m", "fastmtt.distill", *flags, *self.more]


def run(plan: Plan, log: Path, seconds: float) -> Iterator[Row]:
    """Go on with the distillation until its end or the limit; rows say how far it came.

    Args:
        plan: what to do.
        log: a file that what the command says is appended to.
        seconds: the limit, the time to write a checkpoint included.
    """
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        yield {"failed": f"not installed here: {', '.join(lacking)}; pip install them first"}
        return
    plan.folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(
            plan.command(), cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(max(seconds - _TO_END, 5))
            ended = "finished" if code == 0 else f"ended with code {code}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_TO_END)
                ended = "interrupted at the limit; call again to go on"
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                ended = "killed: it did not end in time after an interrupt; call again to go on"
    failed = ended.startswith("ended")
    spent = _add_seconds(plan.folder / "seconds.json", time.monotonic() - begin)
    row: Row = {"s": time.monotonic() - begin, "s of all calls": spent, **_progress(plan)}
    yield {**row, "failed": f"{ended}, see {log.name}"} if failed else {**row, "state": ended}


def _add_seconds(file: Path, seconds: float) -> float:
    total = seconds + (json.loads(file.read_text()) if file.exists() else 0.0)
    file.write_text(json.dumps(total))
    return total


def _is_step(record: Row) -> bool:
    return "iteration" in record and "accuracy" not in record


def _progress(plan: Plan) -> Row:
    """Experts and iterations done, the last and the best accuracy, seconds of the parts."""
    experts = len(list(plan.folder.glob("buffers/**/expert_*.safetensors")))
    (metrics, *_) = [*plan.folder.glob("runs/**/metrics.jsonl"), None]
    if metrics is None:
        return {"experts": experts}
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    accuracies = [r["accuracy"] for r in records if "accuracy" in r]
    row: Row = {
        "experts": experts,
        # an evaluation's record bears the number of the iteration to come
        "iterations": 1 + max((r["iteration"] for r in records if _is_step(r)), default=-1),
        "accuracy": accuracies[-1] if accuracies else None,
        "best accuracy": max(accuracies, default=None),
    }
    summary = metrics.with_name("summary.json")
    if summary.exists():
        row["seconds"] = json.loads(summary.read_text()).get("seconds")
    return row
