"""The keys of `python -m fastmtt.distill`."""

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastmtt.errors import FastmttError
from fastmtt.options.base import DATA, EXPERTS, MACHINE, NETWORK
from fastmtt.options.condense import GRADIENTS, INNER_NETWORKS, TRAJECTORIES
from fastmtt.options.starts import StartConfig


@dataclass(frozen=True, kw_only=True)
class DistillConfig(StartConfig):
    """Distil a data set by matching trajectories or gradients; missing experts are trained first.

    Attributes:
        ipc: Distilled images a class [MTT].
        Iteration: Number of the last outer iteration; as in the field, it counts from 0 [MTT].
        eval_it: Outer iterations between evaluations [MTT].
        num_eval: Networks trained in an evaluation [MTT].
        epoch_eval_train: Number of the last epoch of an evaluation, counted from 0 [MTT].
        protocol: How an evaluation's networks are trained: mtt as in the trajectory-matching
            family, idc as in IDC, by CutMix, its augmentation, lr 0.01 and batches of 64 [IDC].
        lr_img: Learning rate of the distilled images [MTT].
        lr_lr: Learning rate of the student's learning rate [MTT].
        lr_teacher: The student's learning rate at the start; distillation learns it [MTT].
        batch_train: Distilled images in a training batch of an evaluation [MTT].
        num_intervals: Stages of the run. Each adds ipc images a class to the earlier ones, which
            stay as they are, and matches experts that begin where training on these ended [PDD].
        texture: Distil a canvas for each image; training images are windows of it at random
            places [MTT].
        canvas_size: Sides of a canvas in sides of an image [MTT].
        canvas_samples: Windows taken of each canvas in a batch [MTT].
        ema_decay: Average the images over the steps with this decay and evaluate the average too
            (null, do not) [FTD].
        ema_eval: fresh networks for the average, or as released: those the images have trained
            already, trained on [FTD].
        skip_first_eva: Do not evaluate before the first iteration [DATM].
        save_path: Folder of the runs.
        run_name: The run's folder (null, the method and the time).
        logger: Log to tensorboard or wandb as well, where installed (null, to files alone).
        project: The project's name at wandb [DATM].
        published: Published accuracy in per cent, to stand beside the result.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "data": f"{DATA} held_out",
        "network and its batches": NETWORK,
        "experts": f"buffer_path num_experts train_epochs expert_lr expert_batch max_experts "
        f"{EXPERTS}",
        "distilled images": "ipc num_intervals pix_init texture canvas_size canvas_samples factor "
        "decode_type lr_img mom_img lr_lr lr_teacher batch_syn Iteration ema_decay",
        "labels": "labels lr_y Momentum_y Label_Model_Timestamp "
        "Initialize_Label_With_Another_Model Initialize_Label_Model",
        "matching": "method objective expert_epochs syn_steps min_start_epoch max_start_epoch "
        "Sequential_Generation current_max_start_epoch expansion_end_epoch threshold keep "
        "loss_ratio depth_ratio no_aug gradient legacy_scale segments rng memory",
        "matching gradients": GRADIENTS,
        "networks whose gradients are matched": INNER_NETWORKS,
        "evaluation": "eval_it protocol num_eval epoch_eval_train skip_first_eva ema_eval "
        "published",
        "run": f"save_path run_name resume logger project {MACHINE}",
    }

    ipc: int = 1
    Iteration: int = 5000
    eval_it: int = 100
    num_eval: int = 5
    epoch_eval_train: int = 1000
    protocol: Literal["mtt", "idc"] = "mtt"
    lr_img: float = 1000.0
    lr_lr: float = 1e-5
    lr_teacher: float = 0.01
    num_intervals: int = 1
    texture: bool = False
    canvas_size: int = 2
    canvas_samples: int = 1
    skip_first_eva: bool = False
    ema_decay: float | None = None
    ema_eval: Literal["fresh", "released"] = "fresh"
    save_path: str = "logged_files"
    run_name: str | None = None
    logger: Literal["tensorboard", "wandb"] | None = None
    project: str = "fastmtt"
    published: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        complaint = self._epochs_at_odds() or self._choices_at_odds()
        if complaint:
            raise FastmttError(complaint)

    def _choices_at_odds(self) -> str:
        """Say which choices mean nothing together; empty: none."""
        return (
            self._gradients_at_odds()
            or self._storage_at_odds()
            or self._labels_at_odds()
            or self._matching_at_odds()
            or self._stages_at_odds()
            or self._evaluation_at_odds()
        )

    def _gradients_at_odds(self) -> str:
        """Say which choice is trajectory matching's alone, where gradients are matched."""
        if self.objective == "matching":
            return ""
        usual = {name: key.default for name, key in type(self).__dataclass_fields__.items()}
        for name, reason in TRAJECTORIES.items():
            if (value := getattr(self, name)) != usual[name]:
                return (
                    f"{name} is {json.dumps(value)}, but objective is gradmatch: {reason}; leave "
                    f"{name} out, or set objective to matching"
                )
        if self.pix_init == "samples_predicted_correctly":
            return (
                "pix_init is samples_predicted_correctly, but objective is gradmatch, which has no "
                "experts to ask; set pix_init to real"
            )
        return ""

    def _storage_at_odds(self) -> str:
        if self.texture and self.zca:
            return (
                "texture cuts windows out of canvases and zca whitens images as wholes; set one of "
                "them to false"
            )
        if self.factor > 1 and (self.zca or self.texture):
            what = "whitens images as wholes" if self.zca else "cuts windows out of them"
            name = "zca" if self.zca else "texture"
            return (
                f"factor is {self.factor}, which enlarges parts of stored images, and {name} "
                f"{what}; set factor to 1 or {name} to false"
            )
        usual = {"canvas_size": 2, "canvas_samples": 1}
        for name, value in usual.items():
            if getattr(self, name) != value and not self.texture:
                return (
                    f"{name} is {getattr(self, name)}, but texture is false; set texture to true, "
                    f"or leave {name} out"
                )
        return ""

    def _stages_at_odds(self) -> str:
        if self.labels == "teacher" and self.num_intervals > 1:
            return (
                f"labels are teacher's, anew at every step, but num_intervals is "
                f"{self.num_intervals} and earlier stages' labels stay; set labels to hard or soft"
            )
        return ""

    def _evaluation_at_odds(self) -> str:
        if self.ema_eval == "released" and self.ema_decay is None:
            return "ema_eval is released, but no ema_decay averages the images; set ema_decay"
        if self.protocol == "idc" and self.batch_train not in (type(self).batch_train, 64):
            return (
                f"batch_train is {self.batch_train}, but protocol idc trains by batches of 64; "
                "leave it out, or set protocol to mtt"
            )
        return ""
