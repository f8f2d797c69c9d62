"""The published programs' files and flags: their shapes as published, their quirks by name."""

import warnings
from dataclasses import fields
from pathlib import Path

import pytest

from fastmtt.config import parse
from fastmtt.errors import FastmttError
from fastmtt.options import BufferConfig, DistillConfig, EvaluateConfig
from fastmtt.published_config import _ABSENT, _ABSENT_VALUES, _IGNORED

# The shape of DATM's and PAD's files: keys, order and spellings; one of each kind.
DATM_CIFAR100_IPC50 = """\
dataset: CIFAR100
device: [0,1,2,3]

ipc: 50
syn_steps: 80
expert_epochs: 2
lr_img: 1000
lr_teacher: 0.01
buffer_path: ../buffer_storage/
data_path: ../dataset
ema_decay: 0.9995
Iteration: 10000
batch_syn: 1000

# wandb
project: CIFAR100_ipc50

num_eval: 1
eval_it: 500
skip_first_eva: False

lr_y: 10.0
Momentum_y: 0.9
threshold: 1.
pix_init: real
Sequential_Generation: False
batch_train: 128
min_start_epoch: 20
max_start_epoch: 70
lr_lr: 0.00001
zca: True
"""
PAD_CIFAR10_IPC10 = """\
dataset: CIFAR10
device: [3]

ipc: 10
syn_steps: 80
expert_epochs: 2
zca: False
lr_img: 100
lr_teacher: 0.01
buffer_path: ../buffer_storage/
data_path: ../dataset
ema_decay: 0.9995
Iteration: 10000
batch_syn: 500

# wandb
project: CIFAR10_ipc10

num_eval: 1
eval_it: 500
skip_first_eva: True

lr_y: 2.0
Momentum_y: 0.9
threshold: 1.
pix_init: samples_predicted_correctly
batch_train: 128

min_start_epoch: 0
current_max_start_epoch: 10
max_start_epoch: 20
expansion_end_epoch: 1000

lr_lr: 0.00001
zca: True

depth_ratio: 0.5
loss_ratio: 0.5"""
PAD_TINY_IPC50 = """\
dataset: Tiny
res: 64
model: ConvNetD4
device: [0,1,2,3]
ipc: 50
max_start_epoch: 70
min_start_epoch: 40
pix_init: real
expansion_end_epoch: 1
Sequential_Generation: False
depth_ratio: 0.0
loss_ratio: 0.0
name: cl_and_freeze
"""
# What the two programs set where a file does not.
DEFAULTS = """\
subset: imagenette
model: ConvNet
eval_mode: S
epoch_eval_train: 1000
lr_init: 0.01
batch_real: 256
dsa: True
dsa_strategy: color_crop_cutout_flip_scale_rotate
load_all: False
no_aug: False
texture: False
canvas_size: 2
canvas_samples: 1
max_files: null
max_experts: null
force_save: False
record_loss: False
init_frozen: start
parall_eva: False
Initialize_Label_With_Another_Model: False
Initialize_Label_Model: ""
Initialize_Label_Model_Dir: ""
Label_Model_Timestamp: -1
"""
LIFTED = ("lr_y", "Momentum_y", "threshold")


def written(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return ["--cfg", str(path)]


def said(command, argv: list[str]):
    """The configuration and the warnings' texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = parse(command, argv)
    return config, [str(warning.message) for warning in caught]


def refusal(command, argv: list[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal is one sentence, with no warnings before it
        with pytest.raises(FastmttError) as refused:
            parse(command, argv)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def without(text: str, *names: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.partition(":")[0] not in names)


def test_a_file_of_datm_asks_for_its_soft_labels(tmp_path: Path) -> None:
    sentence = refusal("distill", written(tmp_path, DATM_CIFAR100_IPC50))
    assert sentence.endswith(
        "p.yaml asks for what this version does not have: DATM's learned soft labels (lr_y: 10.0, "
        "Momentum_y: 0.9); DATM's bound on the loss of a step (threshold: 1.); take these keys out "
        "to go without"
    )


def test_a_file_of_datm_without_them_is_read_and_every_quirk_named(tmp_path: Path) -> None:
    config, warned = said("distill", written(tmp_path, without(DATM_CIFAR100_IPC50, *LIFTED)))
    assert config == DistillConfig(
        dataset="CIFAR100",
        data_path="../dataset",
        zca=True,
        buffer_path="../buffer_storage/",
        batch_train=128,
        ipc=50,
        Iteration=10000,
        eval_it=500,
        num_eval=1,
        lr_img=1000.0,
        lr_lr=1e-5,
        lr_teacher=0.01,
        batch_syn=1000,
        expert_epochs=2,
        syn_steps=80,
        min_start_epoch=20,
        max_start_epoch=70,
        project="CIFAR100_ipc50",
    )
    assert [line.partition("line ")[2] for line in warned] == [
        "2: device is a list of GPUs ([0, 1, 2, 3]), taken as auto: one device is used",
        "11: ema_decay is ignored: DATM and PAD do not average images",
        "23: Sequential_Generation is ignored: False is what happens here anyway",
    ]


def test_a_file_of_pad_names_all_it_asks_for_in_one_sentence(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="holds zca twice; the last one counts"),
        pytest.raises(FastmttError) as refused,
    ):
        parse("distill", written(tmp_path, PAD_CIFAR10_IPC10))
    for part in (
        "DATM's learned soft labels (lr_y: 2.0, Momentum_y: 0.9)",
        "DATM's bound on the loss of a step (threshold: 1.)",
        "DATM's start images that an expert gets right (pix_init: samples_predicted_correctly)",
        "DATM's growing range of start epochs (current_max_start_epoch: 10, "
        "expansion_end_epoch: 1000)",
        "PAD's matching of a part of the weights (depth_ratio: 0.5, loss_ratio: 0.5)",
    ):
        assert part in str(refused.value)


def test_a_file_of_pad_without_them_is_read(tmp_path: Path) -> None:
    plain = without(
        PAD_CIFAR10_IPC10,
        *LIFTED,
        "pix_init",
        "current_max_start_epoch",
        "expansion_end_epoch",
        "depth_ratio",
        "loss_ratio",
    )
    config, warned = said("distill", written(tmp_path, plain))
    assert (config.zca, config.ipc, config.batch_syn, config.skip_first_eva) == (
        True,
        10,
        500,
        True,
    )
    assert "holds zca twice; the last one counts (True)" in warned[0]
    assert len(warned) == 3  # zca, device, ema_decay


def test_keys_of_a_choice_that_is_off_have_no_effect(tmp_path: Path) -> None:
    config, warned = said("distill", written(tmp_path, PAD_TINY_IPC50))
    assert (config.res, config.model, config.min_start_epoch) == (64, "ConvNetD4", 40)
    together = "\n".join(warned)
    assert "expansion_end_epoch is ignored: it has an effect with Sequential_Generation only" in (
        together
    )
    assert "depth_ratio is ignored: 0.0 is what happens here anyway" in together
    assert "name is ignored: PAD does not read it; run_name names a run" in together


def test_the_programs_own_defaults_are_all_read(tmp_path: Path) -> None:
    config, warned = said("distill", written(tmp_path, DEFAULTS))
    assert config == DistillConfig()
    names = [line.partition("line ")[2].split(": ")[1].split()[0] for line in warned]
    assert names == [
        *("eval_mode", "lr_init", "batch_real", "load_all", "texture", "canvas_size"),
        *("canvas_samples", "max_files", "force_save", "record_loss", "init_frozen", "parall_eva"),
        *("Initialize_Label_With_Another_Model", "Initialize_Label_Model"),
        *("Initialize_Label_Model_Dir", "Label_Model_Timestamp"),
    ]


@pytest.mark.parametrize(
    ("line", "choice"),
    [
        ("eval_mode: M", "evaluation on several networks"),
        ("texture: True", "MTT's textures (texture: True)"),
        ("max_files: 2", "for which max_experts stands (max_files: 2)"),
        ("Initialize_Label_With_Another_Model: True", "DATM's labels by another network"),
        ("Label_Model_Timestamp: 40", "DATM's labels by an expert's snapshot"),
        ("Initial_Step: 8", "DATM's growing range of start epochs (Initial_Step: 8)"),
        ("Sequential_Generation: True", "DATM's growing range of start epochs"),
        ("loss_ratio: 0.25", "PAD's matching of a part of the weights"),
        ("pix_init: samples_predicted_correctly", "DATM's start images"),
    ],
)
def test_choices_that_are_not_there_are_said(tmp_path: Path, line: str, choice: str) -> None:
    assert choice in refusal("distill", written(tmp_path, f"ipc: 1\n{line}\n"))


def test_the_published_commands_are_read() -> None:
    """MTT's README, CIFAR-100 with one image a class, with flags its scripts take besides."""
    flags = (
        "--dataset=CIFAR100 --ipc=1 --syn_steps=20 --expert_epochs=3 --max_start_epoch=20 --zca "
        "--lr_img=1000 --lr_lr=1e-05 --lr_teacher=0.01 --buffer_path=b --data_path=d "
        "--lr_init 0.01 --eval_mode S --dsa True --load_all --max_files null --no_aug False"
    )
    config, warned = said("distill", flags.split())
    assert config == DistillConfig(
        dataset="CIFAR100", max_start_epoch=20, zca=True, buffer_path="b", data_path="d"
    )
    assert [line.split()[0] for line in warned] == ["lr_init", "eval_mode", "load_all", "max_files"]
    flags = "--dataset=CIFAR100 --train_epochs=50 --num_experts=100 --zca --save_interval 10"
    config, warned = said("buffer", flags.split())
    assert config == BufferConfig(dataset="CIFAR100", zca=True)
    assert warned == ["save_interval is ignored: every expert has a file of its own"]
    flags = "--zca --dataset CIFAR10 --data_dir x/images_best.pt --label_dir l --lr_dir r"
    config, warned = said(
        "evaluate", [*flags.split(), *["--lr_teacher", "0.01", "--no_aug", "False"]]
    )
    assert config == EvaluateConfig(
        data_dir="x/images_best.pt", label_dir="l", lr_dir="r", dataset="CIFAR10", zca=True
    )
    assert [line.split()[0] for line in warned] == ["lr_teacher", "no_aug"]


def test_flags_name_choices_that_are_not_there_too() -> None:
    assert "FTD's averaged images (ema_decay: 0.999)" in refusal(
        "distill", ["--ema_decay", "0.999"]
    )
    assert "FTD's GSAM experts (rho_max: 0.01, rho_min: 0.01, alpha: 0.3)" in refusal(
        "buffer", ["--rho_max", "0.01", "--rho_min", "0.01", "--alpha", "0.3"]
    )
    assert "MTT's textures (texture: true, canvas_size: 3)" in refusal(
        "distill", ["--texture", "--canvas_size", "3"]
    )
    assert "DATM's start images" in refusal(
        "distill", ["--pix_init", "samples_predicted_correctly"]
    )


def test_a_list_of_gpus_as_a_flag_is_auto() -> None:
    config, warned = said("distill", ["--device", "[0,1]"])
    assert config.device == "auto" and len(warned) == 1


def test_no_row_names_a_key_of_ours() -> None:
    """A key that distillation learns leaves the tables, or they would never be asked."""
    ours = {field.name for kind in (BufferConfig, DistillConfig) for field in fields(kind)}
    assert not ours & (set(_IGNORED) | set(_ABSENT))
    assert {name for name, _ in _ABSENT_VALUES} <= ours
