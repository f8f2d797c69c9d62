"""A run's folder and a command's end."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastmtt.config import parse
from fastmtt.errors import FastmttError
from fastmtt.files import read_safetensors
from fastmtt.options import DistillConfig
from fastmtt.run import KIND, RunFolder, append_metrics, command, environment


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    return DistillConfig(
        save_path=str(tmp_path / "runs"), dataset="digits", ipc=10, lr_lr=1e-6, run_name="first"
    )


def test_the_folder_is_the_fields_and_holds_the_configuration(
    tmp_path: Path, config: DistillConfig
) -> None:
    run = RunFolder(config)
    assert run.path == tmp_path / "runs" / "digits" / "10" / "ConvNet" / "first"
    assert parse("distill", ["--cfg", str(run.path / "config.yaml")]) == config
    facts = json.loads((run.path / "environment.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]


def test_without_a_name_the_method_and_the_time_name_it(config: DistillConfig) -> None:
    run = RunFolder(dataclasses.replace(config, run_name=None))
    method, _, when = run.path.name.partition("_")
    assert method == "mtt"
    assert abs(time.mktime(time.strptime(when, "%Y%m%d-%H%M%S")) - time.time()) < 60


def test_a_folder_with_something_in_it_is_refused(config: DistillConfig) -> None:
    path = RunFolder(config).path
    with pytest.raises(FastmttError, match=r"first holds a run already; choose another run_name"):
        RunFolder(config)
    for file in path.iterdir():
        file.unlink()
    assert RunFolder(config).path == path


def test_a_file_in_the_way_is_named(tmp_path: Path, config: DistillConfig) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(FastmttError, match=r"cannot be made a run's folder \(Not a directory\)"):
        RunFolder(config)


def test_log_and_metrics_grow(config: DistillConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(config)
    run.log("accuracy 46.2 ± 0.8")
    run.log("second")
    run.log_metrics({"iteration": 0, "loss": 0.5})
    run.log_metrics({"iteration": 1, "loss": float("nan"), "lr": float("inf")})
    append_metrics(run.path, [{"a": "ü"}, {"b": True}])
    assert "accuracy 46.2 ± 0.8\nsecond\n" in capsys.readouterr().err
    lines = (run.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[20:] for line in lines] == ["accuracy 46.2 ± 0.8", "second"]
    records = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(record) for record in records] == [
        {"iteration": 0, "loss": 0.5},
        {"iteration": 1, "loss": None, "lr": None},
        {"a": "ü"},
        {"b": True},
    ]


def test_tensors_come_back_and_leave_nothing_beside(config: DistillConfig) -> None:
    run = RunFolder(config)
    images = torch.randn(4, 1, 8, 8, requires_grad=True)
    path = run.save_tensors("checkpoint", {"images": images}, {"iteration": 3})
    tensors, metadata = read_safetensors(path, KIND)
    assert torch.equal(tensors["images"], images.detach()) and metadata["iteration"] == 3
    run.save_pt("images_best.pt", images[1:3])
    loaded = torch.load(run.path / "images_best.pt", weights_only=True)
    assert torch.equal(loaded, images[1:3]) and loaded.untyped_storage().nbytes() == 2 * 64 * 4
    run.save_pt("lr_best.pt", torch.tensor(0.02))
    assert torch.load(run.path / "lr_best.pt", weights_only=True).shape == ()
    assert {file.name for file in run.path.iterdir()} == {
        "config.yaml",
        "environment.json",
        "checkpoint.safetensors",
        "images_best.pt",
        "lr_best.pt",
    }


def test_small_images_are_enlarged_ten_a_row(config: DistillConfig) -> None:
    """Images of plain left and right halves: cell i of the grid is image i, enlarged."""
    images = torch.zeros(12, 3, 8, 8)
    images[:, 0, :, 4:] = 1.0
    images[11] = images[11].flip(-1)
    path = RunFolder(config).save_image_grid("images.png", images)
    picture = np.array(Image.open(path))
    step, edge = 32 + 2, 2  # torchvision's padding
    assert picture.shape == (2 * step + edge, 10 * step + edge, 3)

    def cell(row: int, column: int) -> Any:
        top, left = row * step + edge, column * step + edge
        return picture[top : top + 32, left : left + 32]

    assert (cell(0, 9)[:, :16] == 0).all() and (cell(0, 9)[:, 16:, 0] == 255).all()
    assert (cell(1, 1)[:, :16, 0] == 255).all() and (cell(1, 1)[:, 16:] == 0).all()
    assert (cell(0, 0)[:, :, 1:] == 0).all()


def test_large_images_keep_their_size_and_outliers_are_clipped(config: DistillConfig) -> None:
    images = torch.randn(3, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    images[1, 0, 5, 7] = 30.0
    std, mean = images.std(), images.mean()
    path = RunFolder(config).save_image_grid("images.png", images)
    picture = np.array(Image.open(path))
    assert picture.shape == (64 + 4, 3 * 66 + 2, 3)
    shown = picture[2:66, 2 + 66 : 66 + 66, 0].astype(float)
    clipped = images[1, 0].clamp(mean - 2.5 * std, mean + 2.5 * std).double()
    expected = 255 * (clipped - clipped.min()) / (clipped.max() - clipped.min())
    np.testing.assert_allclose(shown, expected.numpy(), rtol=0, atol=1)
    one = RunFolder(DistillConfig(save_path=config.save_path, run_name="one")).save_image_grid(
        "one.png", torch.rand(1, 1, 8, 8)
    )
    assert Image.open(one).size == (32, 32)  # torchvision frames a grid, not a single image


def test_a_users_mistake_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv: list[str] | None = None) -> None:
        """Do it."""
        raise FastmttError(f"got {argv}, wanted more")

    with pytest.raises(SystemExit) as left:
        main(["a"])
    assert left.value.code == 2 and main.__doc__ == "Do it."
    captured = capsys.readouterr()
    assert captured.err == "fastmtt: got ['a'], wanted more\n" and captured.out == ""


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    @command
    def main(argv: list[str] | None = None) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])


def test_warnings_are_a_line_within_a_command_only() -> None:
    usual = warnings.formatwarning

    @command
    def main(argv: list[str] | None = None) -> None:
        text = warnings.formatwarning("zca twice", UserWarning, "file.py", 7)
        assert text == "warning: zca twice\n"

    main([])
    assert warnings.formatwarning is usual


def test_ctrl_c_leaves_with_code_130(tmp_path: Path) -> None:
    program = (
        "import time\nfrom fastmtt.run import command\n"
        "@command\ndef main(argv=None):\n    print('running', flush=True); time.sleep(60)\nmain()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts background jobs with Ctrl-C ignored, which children inherit
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == "fastmtt: interrupted; finished experts and the sets saved so far are kept\n"


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
