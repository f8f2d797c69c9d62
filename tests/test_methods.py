"""The methods as users run them: the distill command on the digits, at a size of seconds."""

import json
from pathlib import Path

import pytest
import straight_line
import torch
from compare import assert_close
from test_commands import failing
from tolerances import ROUNDING_32

from fastmtt import buffer, distill, evaluate
from fastmtt.data import load
from fastmtt.experts.store import TrajectoryStore
from fastmtt.methods import METHODS
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import load_synthetic

MODEL = "ConvNetD1W8"
SMALL = f"--dataset digits --model {MODEL} --threads 1 --dsa_strategy crop_scale --batch_train 128"
DISTILL = (
    f"{SMALL} --num_experts 2 --train_epochs 4 --expert_epochs 2 --max_start_epoch 3 "
    "--current_max_start_epoch 1 --expansion_end_epoch 2 --syn_steps 4 --Iteration 3 --eval_it 2 "
    "--num_eval 2 --epoch_eval_train 5 --lr_img 10 --batch_syn 8 --expert_lr 0.05 --ipc 2"
)


def distilled(folder: Path, method: str, flags: str = "") -> Path:
    """The folder of a run; runs of one folder share their experts."""
    where = f"--method {method} --save_path {folder} --buffer_path {folder}/experts --run_name run"
    distill.main(f"{DISTILL} {where} {flags}".split())
    return folder / "digits" / "2" / MODEL / "run"


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", [name for name in METHODS if name != "idc"])
def test_every_method_learns_something_finite(tmp_path, method, capsys):
    own = {"tesla": "--labels teacher", "pad": "--loss_ratio 0.3", "pdd": "--num_intervals 2"}
    more = own.get(method, "")
    run = distilled(tmp_path, method, more)
    last, _ = load_synthetic(run / "distilled_last.safetensors")
    found = records(run)
    losses = [record["loss"] for record in found if "loss" in record]
    rates = [record["lr"] for record in found if "loss" in record]
    assert len(losses) == 4 * (1 + (method == "pdd")) and all(loss > 0 for loss in losses)
    assert all(rate > 0 for rate in rates) and len({*rates, 0.01}) > 2, "lr is learned"
    assert last.images.isfinite().all() and last.images.dtype == torch.float32
    starts = load("digits", "data", progress=False, zca=method in ("datm", "pad")).train_images
    distance = (last.images[:, None] - starts[None]).flatten(2).norm(dim=2).min(1).values
    assert (distance > 1e-4).all(), "every image has left the real one it was"
    soft = last.labels.is_floating_point()
    assert soft == (method in ("tesla", "datm", "pad"))
    assert last.labels.isfinite().all()
    summary = json.loads((run / "summary.json").read_text())
    assert ("accuracy_ema_best" in summary) == (method == "ftd")
    average = f"the average of its images: {run / 'distilled_ema_best.safetensors'}\n"
    assert (average in capsys.readouterr().err) == (method == "ftd")
    if method == "ftd":
        average, _ = load_synthetic(run / "distilled_ema_last.safetensors")
        assert not torch.equal(average.images, last.images) and torch.equal(average.lr, last.lr)


def test_textures_are_distilled_and_evaluated(tmp_path):
    run = distilled(tmp_path, "mtt", "--texture --canvas_samples 3")
    last, _ = load_synthetic(run / "distilled_last.safetensors")
    assert last.images.shape == (20, 1, 16, 16)
    assert last.parametrisation.describe() == {"kind": "canvas", "size": 2, "samples": 3}
    evaluate.main([str(run), "--num_eval", "1", "--epoch_eval_train", "5"])
    assert records(run)[-1]["evaluated"] == "distilled set (best)"


GRADIENTS = (
    "--objective gradmatch --factor 2 --metric mse --inner_loop 10 --n_data 64 --lr_img 5 "
    "--aug_type crop_scale --mix_p 0.5 --net_batch 32 --expert_lr 0.01"
)


@pytest.mark.parametrize("method", ["idc", "pdd"])
def test_gradients_are_matched_without_experts(tmp_path, method):
    staged = "--num_intervals 2" if method == "pdd" else ""
    run = distilled(tmp_path, method, f"{GRADIENTS} {staged} --inner_loop 2")
    last, _ = load_synthetic(run / "distilled_last.safetensors")
    assert len(last.images) == 20 * (1 + bool(staged)) and last.images.isfinite().all()
    assert last.parametrisation.describe()["stored"] == {
        **{"kind": "decode", "factor": 2, "type": "single", "bound": 128}
    }
    assert not (tmp_path / "experts").exists() and not (run / "experts.json").exists()
    losses = [record["loss"] for record in records(run) if "loss" in record]
    assert len(losses) == 4 * (1 + bool(staged)) and all(loss > 0 for loss in losses)
    evaluate.main([str(run), "--num_eval", "2", "--epoch_eval_train", "5"])
    found = "2 stages" if staged else "best"
    assert records(run)[-1]["evaluated"] == f"distilled set ({found})"


def test_gradients_at_snapshots_of_experts(tmp_path):
    run = distilled(tmp_path, "idc", f"{GRADIENTS} --inner_loop 1 --pt_from 2 --Iteration 0")
    assert json.loads((run / "experts.json").read_text())["experts"] == 2


@pytest.mark.slow
def test_matched_gradients_beat_random_real_images(tmp_path):
    """As many stored images, by the configuration that `make methods` runs."""
    cfg = Path(__file__).parents[1] / "configs" / "idc" / "digits_ipc1.yaml"
    distill.main(["--cfg", str(cfg), "--save_path", str(tmp_path), "--run_name", "run"])
    run = tmp_path / "digits" / "1" / "ConvNetD2W32" / "run"
    evaluate.main([str(run), "--compare", "--protocol", "idc"])
    found = {record["evaluated"].partition(" (")[0]: record for record in records(run)[-3:]}
    ours, random = found["distilled set"], found["random real images"]
    assert ours["accuracy"] - ours["accuracy_std"] > random["accuracy"] + random["accuracy_std"]


OTHER = "--Initialize_Label_With_Another_Model true --Initialize_Label_Model ConvNetD1W6"
# With a threshold no loss is below, what a run starts from is what it ends with.
FROZEN = "--method datm --zca false --rho_max null --threshold 1e-6 --Iteration 0"


def test_another_networks_experts_give_images_and_labels(tmp_path):
    made = SMALL.replace(MODEL, "ConvNetD1W6") + f" --buffer_path {tmp_path}/experts --mom 0.9"
    buffer.main(f"{made} --num_experts 3 --train_epochs 5".split())
    run = distilled(tmp_path, "datm", f"{FROZEN} {OTHER} --Label_Model_Timestamp 4")
    found, _ = load_synthetic(run / "distilled_last.safetensors")
    network = make_network("ConvNetD1W6", image_shape=(1, 8, 8), classes=10).double()
    store = TrajectoryStore(tmp_path / "experts" / "digits" / "ConvNetD1W6")
    targets = torch.arange(10).repeat_interleave(2)
    answers = [
        straight_line.logits(
            network, store.segment(expert, 4, 4)[0].double(), found.images.double()
        ).detach()
        for expert in range(3)
    ]
    # the run asks as many of them as it has experts of its own: num_experts, 2
    right = torch.stack([given.argmax(1) == targets for given in answers[:2]])
    assert right.any(0).all(), "each image is one that an expert gets right"
    weights = right.double() / right.sum(0)
    want = sum(w[:, None] * given for w, given in zip(weights, answers, strict=False))
    assert_close(found.labels, want, 20 * ROUNDING_32)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("ConvNetD1W6", "no experts of Initialize_Label_Model ConvNetD1W6; train them with fastm"),
        ("ConvNetD1X", "network 'ConvNetD1X' is not known"),
    ],
)
def test_another_network_without_experts_is_said_before_training(tmp_path, capsys, other, words):
    where = f"--save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name run"
    flags = f"{DISTILL} {where} {FROZEN} {OTHER} --Initialize_Label_Model {other}"
    assert words in failing(capsys, distill.main, flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", [3, -3])
def test_a_snapshot_another_networks_experts_lack_is_said_before_training(tmp_path, capsys, asked):
    made = SMALL.replace(MODEL, "ConvNetD1W6") + f" --buffer_path {tmp_path}/experts"
    buffer.main(f"{made} --num_experts 2 --train_epochs 1".split())
    where = f"--save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name run"
    flags = f"{DISTILL} {where} {FROZEN} {OTHER} --Label_Model_Timestamp {asked}"
    said = failing(capsys, distill.main, flags)
    assert f"snapshots 0 to 1, but Label_Model_Timestamp is {asked}" in said
    assert "ConvNetD1W6" in said and not (tmp_path / "experts" / "digits" / MODEL).exists()


def test_images_of_which_experts_get_too_few_right_are_said(tmp_path, capsys):
    where = f"--save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name run"
    flags = f"{DISTILL} {where} {FROZEN} --expert_lr 1e-6 --ipc 100"
    said = failing(capsys, distill.main, flags)
    assert "images of class" in said and "wanted ipc 100" in said


def test_more_images_than_a_class_has_are_said_before_training(tmp_path, capsys):
    where = f"--save_path {tmp_path} --buffer_path {tmp_path}/experts --run_name run"
    said = failing(capsys, distill.main, f"{DISTILL} {where} {FROZEN} --ipc 200")
    assert "ipc is 200, but class '0' of digits has 134 training images" in said
    assert list(tmp_path.iterdir()) == []


def test_iterations_that_changed_nothing_are_counted(tmp_path, capsys):
    run = distilled(tmp_path, "mtt", "--threshold 1e-6")
    said = "4 of 4 iterations changed nothing: their loss was above threshold 1e-06"
    assert said in capsys.readouterr().err and said in (run / "log.txt").read_text()
