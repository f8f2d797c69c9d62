"""Choices together: what means nothing is refused in a sentence, everything else is allowed."""

import warnings
from typing import Any

import pytest

from fastmtt.config import parse
from fastmtt.errors import FastmttError


def refusal(flags: str) -> str:
    with pytest.raises(FastmttError) as refused:
        parse("distill", flags.split())
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--labels soft --pix_init noise", "labels are soft, but experts can label no noise"),
        (
            "--labels teacher --segments 2",
            "labels are teacher's, those of the one target of a step, but segments is 2; set "
            "segments to 1, or labels to hard or soft",
        ),
        (
            "--labels soft --Initialize_Label_With_Another_Model",
            "Initialize_Label_With_Another_Model is true, but Initialize_Label_Model names no",
        ),
        (
            "--method datm --Initialize_Label_Model VGG11",
            "Initialize_Label_Model is VGG11, but Initialize_Label_With_Another_Model is false",
        ),
        (
            "--Initialize_Label_With_Another_Model --Initialize_Label_Model VGG11",
            "Initialize_Label_With_Another_Model is true, but experts give neither labels (hard) "
            "nor images (pix_init real)",
        ),
        ("--Label_Model_Timestamp 3", "Label_Model_Timestamp is 3, but with pix_init real no snap"),
        (
            "--method datm --Label_Model_Timestamp 101",
            "Label_Model_Timestamp is 101, but experts have snapshots 0 to 100; -1 is the last",
        ),
        (
            "--texture --zca",
            "texture cuts windows out of canvases and zca whitens images as wholes",
        ),
        (
            "--canvas_size 3",
            "canvas_size is 3, but texture is false; set texture to true, or leave",
        ),
        (
            "--method pdd --labels teacher",
            "labels are teacher's, anew at every step, but num_intervals is 5 and earlier stages'",
        ),
        ("--canvas_samples 2", "canvas_samples is 2, but texture is false"),
        ("--loss_ratio 0.5", "loss_ratio is 0.5, but keep is all, which leaves no weight out"),
        ("--depth_ratio 0.5", "depth_ratio is 0.5, but keep is all, which leaves no weight"),
        (
            "--keep depth --loss_ratio 0.5",
            "loss_ratio is 0.5, but keep is depth and depth_ratio 0, which leaves no weight out; "
            "set keep to loss, or loss_ratio to 0",
        ),
        ("--method pad --depth_ratio 0.5", "depth_ratio is 0.5, but keep is loss and loss_ratio 0"),
        ("--legacy_scale", "legacy_scale halves the tesla gradient, but gradient is exact"),
        ("--method tesla --gradient exact", "legacy_scale halves the tesla gradient, but"),
        (
            "--method idc --labels soft",
            'labels is "soft", but objective is gradmatch: each class is matched by itself, with '
            "the labels it has; leave labels out, or set objective to matching",
        ),
        ("--method idc --zca", "zca is true, but objective is gradmatch: images are stored in"),
        ("--method idc --texture", "texture is true, but objective is gradmatch: images are aug"),
        ("--method idc --segments 2", "segments is 2, but objective is gradmatch: no segments"),
        ("--method idc --gradient 3", "gradient is 3, but objective is gradmatch: no student's"),
        ("--method idc --rng published", 'rng is "published", but objective is gradmatch: only'),
        ("--method idc --ema_decay 0.9", "ema_decay is 0.9, but objective is gradmatch: no aver"),
        ("--method idc --threshold 1", "threshold is 1.0, but objective is gradmatch: distances"),
        ("--method pad --objective gradmatch --zca false", 'labels is "soft", but objective is'),
        (
            "--method idc --pix_init samples_predicted_correctly",
            "pix_init is samples_predicted_correctly, but objective is gradmatch, which has no exp",
        ),
        (
            "--method idc --pt_from 5 --train_epochs 3",
            "pt_from is 5, but experts end at train_epochs 3; lower the first or raise the second",
        ),
        ("--factor 2 --zca", "factor is 2, which enlarges parts of stored images, and zca whitens"),
        ("--factor 2 --texture", "factor is 2, which enlarges parts of stored images, and texture"),
        ("--mix_p 1.5", "mix_p is 1.5, wanted a number at least 0 and at most 1"),
        ("--factor 0", "factor is 0, wanted a number at least 1 and at most 100"),
        ("--ema_eval released", "ema_eval is released, but no ema_decay averages the images"),
        ("--rho_max 0.02 --rho_min 0.01", "rho_min is 0.01 and rho_max 0.02, wanted one number"),
        ("--ratio 0.2", "ratio is 0.2, but nothing says which images are hard; name an index file"),
        ("--init_ratio 0.75", "init_ratio is 0.75, but nothing says which images are hard"),
        ("--add_end_epoch 20", "add_end_epoch is 20, but nothing says which images are hard"),
        ("--rm_epoch_second 70", "rm_epoch_second is 70, but nothing says which images are hard"),
        ("--rm_easy_ratio_first 0.2", "rm_easy_ratio_first is 0.2, but nothing says which images"),
        ("--remove_strategy easy", "remove_strategy is easy, but nothing says which images are"),
        (
            "--sort_method GraNd --remove_strategy easy",
            "remove_strategy is easy, but ratio leaves no images out; set ratio",
        ),
        (
            "--sort_method GraNd --ratio 0.2 --init_ratio 0.5 --rm_epoch_first 2",
            "ratio is 0.2, which leaves images out from the beginning, and init_ratio is 0.5, "
            "which is a curriculum's; set ratio to 0 or leave init_ratio and rm_epoch_first out",
        ),
        (
            "--sort_method GraNd --rm_epoch_second 30",
            "rm_epoch_first is 40 and rm_epoch_second 30, wanted the first at most the second",
        ),
        (
            "--method datm --max_start_epoch 10",
            "current_max_start_epoch is 20 and max_start_epoch 10, wanted a range that grows: "
            "lower the first, or set Sequential_Generation to false",
        ),
        (
            "--method datm --min_start_epoch 20",
            "min_start_epoch is 20 and current_max_start_epoch 20, wanted the first below",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:rho_min")
def test_choices_that_mean_nothing_together_are_refused(flags: str, sentence: str) -> None:
    assert refusal(flags).startswith(sentence)


@pytest.mark.parametrize(
    ("flags", "values"),
    [
        ("--method ftd --labels soft", {"rho_max": 0.01, "ema_decay": 0.999, "labels": "soft"}),
        (
            "--method pad --gradient tesla --loss_ratio 0.5",
            {"gradient": "tesla", "keep": "loss", "legacy_scale": False, "threshold": 1.0},
        ),
        ("--method pad --keep depth --depth_ratio 0.5", {"keep": "depth", "labels": "soft"}),
        ("--method datm --labels teacher --rho_max null", {"rho_max": None, "alpha": 0.3}),
        ("--method datm --ema_decay 0.99 --ema_eval released", {"ema_decay": 0.99}),
        ("--method tesla --labels teacher --pix_init noise", {"legacy_scale": True}),
        ("--method tesla --threshold 1 --segments 4", {"threshold": 1.0, "gradient": "tesla"}),
        ("--method mtt --sort_method GraNd --ratio 0.1 --remove_strategy easy", {"rho_max": None}),
        (
            "--method datm --texture --zca false --canvas_size 3",
            {"labels": "soft", "texture": True},
        ),
        (
            "--method pad --num_intervals 3 --keep depth --depth_ratio 0.5 --gradient tesla",
            {"num_intervals": 3, "keep": "depth", "labels": "soft"},
        ),
        (
            "--method idc --num_intervals 5 --factor 3 --decode_type bound --pt_from 2",
            {"objective": "gradmatch", "num_intervals": 5, "epochs_read": 2, "labels": "hard"},
        ),
        ("--method pdd --objective gradmatch --metric cos", {"reads_experts": False}),
        ("--method datm --zca false --factor 2", {"objective": "matching", "reads_experts": True}),
        ("--gradient 5 --keep loss --loss_ratio 0.25", {"gradient": 5, "labels": "hard"}),
        (
            "--pix_init samples_predicted_correctly --Label_Model_Timestamp 10",
            {"labels": "hard", "Label_Model_Timestamp": 10},
        ),
    ],
)
def test_any_choice_goes_with_any_other(flags: str, values: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = parse("distill", flags.split())
    assert {name: getattr(config, name) for name in values} == values
