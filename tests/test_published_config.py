"""The published programs' files and flags: their shapes as published, their quirks by name."""

import warnings
from dataclasses import fields
from pathlib import Path

import pytest
from saying import said

from fastmtt.config import parse
from fastmtt.errors import FastmttError
from fastmtt.options import BufferConfig, DistillConfig
from fastmtt.published_config import _ABSENT, _IGNORED, _RENAMED

# Quirks of files that test_published_files.py, which has all of them, has as well.
PAD_CIFAR10_IPC10 = """\
dataset: CIFAR10
device: [3]

ipc: 10
syn_steps: 80
zca: False
ema_decay: 0.9995
batch_syn: 500
lr_y: 2.0
Momentum_y: 0.9
threshold: 1.
pix_init: samples_predicted_correctly
current_max_start_epoch: 10
max_start_epoch: 20
expansion_end_epoch: 1000
zca: True

depth_ratio: 0.5
loss_ratio: 0.5"""
# DATM's files before its keys had their later names.
DATM_OLD = """\
dataset: CIFAR10
ipc: 500
Momentum_y: 0.9
learn_end_epoch: 10
min_start_epoch: 40
Initial_Step: 56
max_start_epoch: 60
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


def written(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return ["--cfg", str(path)]


def refusal(command, argv: list[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal is one sentence, with no warnings before it
        with pytest.raises(FastmttError) as refused:
            parse(command, argv)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def behind_places(warned: list[str]) -> list[str]:
    return [line.partition("line ")[2] or line.partition("p.yaml ")[2] for line in warned]


def test_every_quirk_of_a_file_is_named(tmp_path: Path) -> None:
    config, warned = said("distill", written(tmp_path, PAD_CIFAR10_IPC10))
    assert (config.method, config.keep, config.loss_ratio) == ("pad", "loss", 0.5)
    assert (config.zca, config.batch_syn, config.ema_decay, config.labels) == (
        *(True, 500, None, "soft"),
    )
    assert behind_places(warned) == [
        "holds zca twice; the last one counts (True)",
        "2: device is a list of GPUs ([3]), taken as auto: one device is used",
        "7: ema_decay is ignored: DATM's and PAD's programs do not read it; with method in the "
        "file it counts",
        "18: depth_ratio has an effect with keep: depth only; PAD's program reads loss_ratio",
        "names no method; taken as pad: it has loss_ratio",
    ]


@pytest.mark.parametrize(
    ("text", "method", "sign"),
    [
        ("loss_ratio: 0.0\nMomentum_y: 0.9\n", "pad", "it has loss_ratio"),
        ("Momentum_y: 0.9\n", "datm", "it has Momentum_y but no loss_ratio"),
        ("ipc: 3\n", "mtt", "it has neither loss_ratio nor Momentum_y"),
    ],
)
def test_a_file_without_a_method_is_told_by_its_keys(
    tmp_path: Path, text: str, method: str, sign: str
) -> None:
    argv = written(tmp_path, text)
    config, warned = said("distill", argv)
    assert config == parse("distill", [*written(tmp_path, text), "--method", method])
    assert config.method == method
    assert behind_places(warned) == [f"names no method; taken as {method}: {sign}"]


def test_none_is_null_as_yacs_reads_it(tmp_path: Path) -> None:
    text = "Momentum_y: 0.9\nbatch_syn: None\nmax_files: None\ndevice: None\n"
    with pytest.raises(FastmttError, match="line 4: device is null, wanted text"):
        said("distill", written(tmp_path, text))
    config, warned = said("distill", written(tmp_path, text.replace("device: None\n", "")))
    assert config.batch_syn is None and config.method == "datm"
    assert behind_places(warned)[:2] == [
        "2: batch_syn is the text None, taken as null",
        "3: max_files is ignored: null is what happens here anyway",
    ]
    config, warned = said("distill", ["--method", "pad", "--batch_syn", "None"])
    assert (config.batch_syn, warned) == (None, ["batch_syn is the text None, taken as null"])


def test_a_method_that_is_named_is_not_told(tmp_path: Path) -> None:
    argv = written(tmp_path, "Momentum_y: 0.9\nema_decay: 0.9\n")
    config, warned = said("distill", [*argv, "--method", "mtt"])
    assert (config.method, config.labels) == ("mtt", "hard")
    assert len(warned) == 1 and "ema_decay is ignored" in warned[0]
    config, warned = said("distill", written(tmp_path, "method: pad\nema_decay: 0.9\n"))
    assert (config.method, config.ema_decay, warned) == ("pad", 0.9, [])


def test_an_average_is_taken_where_a_file_is_none_of_datm_or_pad(tmp_path: Path) -> None:
    argv = written(tmp_path, "ema_decay: 0.9995\n")
    assert said("distill", [*argv, "--method", "ftd"])[0].ema_decay == 0.9995
    assert parse("distill", ["--method", "datm", "--ema_decay", "0.5"]).ema_decay == 0.5


def test_the_older_names_of_datm_are_read(tmp_path: Path) -> None:
    config, warned = said("distill", written(tmp_path, DATM_OLD))
    assert config.Sequential_Generation and config.method == "datm"
    assert [config.start_epochs(i) for i in (0, 5, 10, 900)] == [
        *((40, 56), (40, 58), (40, 60), (40, 60)),
    ]
    assert behind_places(warned)[:2] == [
        "4: learn_end_epoch is taken as expansion_end_epoch, its name here",
        "6: Initial_Step is taken as current_max_start_epoch, its name here",
    ]


def test_keys_of_a_choice_that_is_off_have_no_effect(tmp_path: Path) -> None:
    text = "Momentum_y: 0.9\nSequential_Generation: False\nexpansion_end_epoch: 1\nInitial_Step: 9"
    config, warned = said("distill", written(tmp_path, text))
    assert config.start_epochs(0) == (0, 25)
    assert behind_places(warned)[:2] == [
        "3: expansion_end_epoch has an effect with Sequential_Generation only",
        "4: Initial_Step is taken as current_max_start_epoch, its name here, which has an effect "
        "with Sequential_Generation only",
    ]


def test_labels_by_another_network(tmp_path: Path) -> None:
    text = (
        "Momentum_y: 0.9\nInitialize_Label_With_Another_Model: True\n"
        "Initialize_Label_Model: VGG11\nInitialize_Label_Model_Dir: ../vgg\n"
    )
    config, warned = said("distill", written(tmp_path, text))
    assert config.Initialize_Label_Model == "VGG11"
    assert behind_places(warned)[0] == (
        "4: Initialize_Label_Model_Dir is ignored: no published program reads it; buffer_path is "
        "searched"
    )


def test_the_programs_own_defaults_are_all_read(tmp_path: Path) -> None:
    config, warned = said("distill", written(tmp_path, DEFAULTS))
    assert config == DistillConfig(batch_real=256)  # which trajectories do not read
    names = [line.partition("line ")[2].split(": ")[1].split()[0] for line in warned[:-1]]
    assert names == [
        *("eval_mode", "lr_init", "load_all"),
        *("max_files", "force_save", "record_loss", "init_frozen", "parall_eva"),
        *("Initialize_Label_Model", "Initialize_Label_Model_Dir"),
    ]
    assert warned[-3].endswith("Initialize_Label_Model is empty, taken as null")


@pytest.mark.parametrize(
    ("line", "choice"),
    [
        ("eval_mode: M", "evaluation on several networks"),
        ("max_files: 2", "for which max_experts stands (max_files: 2)"),
        ("random_trajectory: True", "TESLA's random trajectories (random_trajectory: True)"),
        ("num_intervals: 5\nstart_interval: 2", "PDD's later first stage, for which resume stands"),
    ],
)
def test_choices_that_are_not_there_are_said(tmp_path: Path, line: str, choice: str) -> None:
    assert choice in refusal("distill", written(tmp_path, f"ipc: 1\n{line}\n"))


def test_flags_name_choices_that_are_not_there_too() -> None:
    assert "TESLA's random trajectories (random_trajectory: true)" in refusal(
        "distill", ["--random_trajectory"]
    )
    assert "TESLA's other losses of experts (loss_type: mse)" in refusal(
        "buffer", ["--loss_type", "mse"]
    )


def test_a_list_of_gpus_as_a_flag_is_auto() -> None:
    config, warned = said("distill", ["--device", "[0,1]"])
    assert config.device == "auto" and len(warned) == 1


def test_no_row_names_a_key_of_ours() -> None:
    """A key that distillation learns leaves the tables, or they would never be asked."""
    ours = {field.name for kind in (BufferConfig, DistillConfig) for field in fields(kind)}
    assert not ours & (set(_IGNORED) | set(_ABSENT) | set(_RENAMED))
