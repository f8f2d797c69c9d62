"""The keys of `python -m fastmtt.distill`."""

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from fastmtt.errors import FastmttError
from fastmtt.options.base import DATA, EXPERTS, MACHINE, NETWORK
from fastmtt.options.condense import (
    GRADIENTS,
    INNER_NETWORKS,
    TRAJECTORIES,
    CondenseConfig,
)

Gradient = Literal["exact", "tesla"] | int


@dataclass(frozen=True, kw_only=True)
class DistillConfig(CondenseConfig):
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
        expert_lr: Learning rate of the experts this command trains itself.
        batch_train: Distilled images in a training batch of an evaluation [MTT].
        expert_batch: Real images in a training batch of the experts this command trains itself.
        train_epochs: Epochs of each expert this command trains itself (null, as many as matching
            reads) [MTT's buffer].
        batch_syn: Distilled images in a student's batch (null, all) [MTT].
        num_intervals: Stages of the run. Each adds ipc images a class to the earlier ones, which
            stay as they are, and matches experts that begin where training on these ended [PDD].
        texture: Distil a canvas for each image; training images are windows of it at random
            places [MTT].
        canvas_size: Sides of a canvas in sides of an image [MTT].
        canvas_samples: Windows taken of each canvas in a batch [MTT].
        pix_init: Images start as real ones, as noise [MTT], or as real ones that experts predict
            correctly [DATM].
        lr_y: Learning rate of the soft labels [DATM].
        Momentum_y: Momentum of the soft labels [DATM].
        labels: hard ones stay as they are, soft ones start as experts' logits and are learned
            [DATM], teacher's are the target's probabilities, anew at every step [TESLA].
        Label_Model_Timestamp: Snapshot of the experts that start images and labels are made with
            (-1, the last) [DATM].
        Initialize_Label_With_Another_Model: Make them with experts of another network [DATM].
        Initialize_Label_Model: That network's name [DATM].
        Sequential_Generation: The range of start epochs grows up to max_start_epoch [DATM].
        current_max_start_epoch: Where its end begins [DATM].
        expansion_end_epoch: Iteration at which it has grown to its end [DATM].
        threshold: Steps whose loss is above it are left out (null, none) [DATM].
        keep: Weights that count in matching: all, those with the largest loss, or the deep ones
            [PAD].
        loss_ratio: Share of the weights that is left out, those with the smallest loss [PAD].
        depth_ratio: Share that is left out, the first ones [PAD].
        ema_decay: Average the images over the steps with this decay and evaluate the average too
            (null, do not) [FTD].
        ema_eval: fresh networks for the average, or as released: those the images have trained
            already, trained on [FTD].
        legacy_scale: Halve the tesla gradient of the images, as TESLA's program does; its lr_img
            is tuned for it [TESLA].
        expert_epochs: Epochs between the start and the target on a trajectory [MTT].
        syn_steps: The student's steps from the start [MTT].
        min_start_epoch: First epoch a segment may start at [DATM].
        max_start_epoch: Segments start before this epoch [MTT].
        no_aug: Leave DSA out of the student's steps; evaluation keeps it [MTT].
        max_experts: Use the first so many experts only (null, all); MTT counts them in each file
            of ten.
        skip_first_eva: Do not evaluate before the first iteration [DATM].
        gradient: exact, tesla as in TESLA (arXiv 2211.10586), or the number of last steps a
            truncated one goes back through.
        segments: Segments in an outer step; their losses' mean is the step's.
        rng: Where batches and augmentation are drawn: counter is equal on every device and
            however segments are grouped, published replays the published programs' order.
        memory: Bytes kept of a student's steps beyond weights and gradients (null, none); changes
            no bit.
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
    expert_lr: float = 0.01
    expert_batch: int = 256
    train_epochs: int | None = None
    batch_syn: int | None = None
    num_intervals: int = 1
    texture: bool = False
    canvas_size: int = 2
    canvas_samples: int = 1
    pix_init: Literal["real", "noise", "samples_predicted_correctly"] = "real"
    labels: Literal["hard", "soft", "teacher"] = "hard"
    lr_y: float = 2.0
    Momentum_y: float = 0.9
    Label_Model_Timestamp: int = -1
    Initialize_Label_With_Another_Model: bool = False
    Initialize_Label_Model: str | None = None
    expert_epochs: int = 3
    syn_steps: int = 20
    min_start_epoch: int = 0
    max_start_epoch: int = 25
    no_aug: bool = False
    max_experts: int | None = None
    skip_first_eva: bool = False
    Sequential_Generation: bool = False
    current_max_start_epoch: int = 20
    expansion_end_epoch: int = 3000
    threshold: float | None = None
    keep: Literal["all", "loss", "depth"] = "all"
    loss_ratio: float = 0.0
    depth_ratio: float = 0.0
    ema_decay: float | None = None
    ema_eval: Literal["fresh", "released"] = "fresh"
    gradient: Gradient = "exact"
    legacy_scale: bool = False
    segments: int = 1
    rng: Literal["counter", "published"] = "counter"
    memory: int | None = None
    save_path: str = "logged_files"
    run_name: str | None = None
    logger: Literal["tensorboard", "wandb"] | None = None
    project: str = "fastmtt"
    published: float | None = None

    @property
    def last_epoch(self) -> int:
        """The last epoch that a segment may end at, or whose snapshot gradients begin with."""
        if self.objective == "gradmatch":
            return max(self.pt_from, 0)
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def expert_length(self) -> int:
        """Epochs that missing experts are trained for."""
        return self.train_epochs or self.last_epoch

    @property
    def epochs_labelled(self) -> int:
        """Epochs that those experts must have that start images and labels."""
        asked = self.Label_Model_Timestamp
        return asked if asked >= 0 else -asked - 1

    @property
    def epochs_read(self) -> int:
        """Epochs that experts must have: up to a segment's end, and to the snapshot that labels."""
        if self.objective == "gradmatch":
            return self.last_epoch
        another = self.Initialize_Label_With_Another_Model
        return max(self.last_epoch, 0 if another else self.epochs_labelled)

    def start_epochs(self, iteration: int) -> tuple[int, int]:
        """The range [low, high) of an iteration's start epochs.

        DATM's grows: U = current_max_start_epoch + int((max_start_epoch -
        current_max_start_epoch) * iteration / expansion_end_epoch), at most max_start_epoch.
        """
        if not self.Sequential_Generation:
            return self.min_start_epoch, self.max_start_epoch
        room = self.max_start_epoch - self.current_max_start_epoch
        grown = self.current_max_start_epoch + int(room * iteration / self.expansion_end_epoch)
        return self.min_start_epoch, min(grown, self.max_start_epoch)

    def __post_init__(self) -> None:
        super().__post_init__()
        complaint = self._epochs_at_odds() or self._choices_at_odds()
        if complaint:
            raise FastmttError(complaint)

    def _epochs_at_odds(self) -> str:
        """Say which experts or epochs do not go together; empty: none."""
        if self.objective == "gradmatch" and self.last_epoch > self.expert_length:
            return (
                f"pt_from is {self.pt_from}, but experts end at train_epochs {self.train_epochs}; "
                "lower the first or raise the second"
            )
        if self.objective == "gradmatch":
            return ""
        low, high = self.start_epochs(0)
        if low >= high:
            name = "current_" * self.Sequential_Generation + "max_start_epoch"
            return f"min_start_epoch is {low} and {name} {high}, wanted the first below the second"
        if self.Sequential_Generation and self.current_max_start_epoch > self.max_start_epoch:
            return (
                f"current_max_start_epoch is {self.current_max_start_epoch} and max_start_epoch "
                f"{self.max_start_epoch}, wanted a range that grows: lower the first, or set "
                "Sequential_Generation to false"
            )
        if self.max_experts is not None and self.max_experts > self.num_experts:
            return (
                f"max_experts is {self.max_experts} and num_experts {self.num_experts}, wanted at "
                "most as many; raise num_experts"
            )
        if self.last_epoch > self.expert_length:
            return (
                f"segments end at epoch {self.last_epoch} (max_start_epoch - 1 + expert_epochs) "
                f"and experts at train_epochs {self.train_epochs}, wanted experts at least as "
                "long; lower max_start_epoch or raise train_epochs"
            )
        if self.epochs_read > self.expert_length:
            return (
                f"Label_Model_Timestamp is {self.Label_Model_Timestamp}, but experts have "
                f"snapshots 0 to {self.expert_length}; -1 is the last"
            )
        return ""

    def _choices_at_odds(self) -> str:
        """Say which choices mean nothing together; empty: none."""
        return (
            self._gradients_at_odds()
            or self._storage_at_odds()
            or self._labels_at_odds()
            or self._matching_at_odds()
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

    def _labels_at_odds(self) -> str:
        if self.labels == "soft" and self.pix_init == "noise":
            return "labels are soft, but experts can label no noise: pix_init must not be noise"
        if self.labels == "teacher" and self.segments > 1:
            return (
                f"labels are teacher's, those of the one target of a step, but segments is "
                f"{self.segments}; set segments to 1, or labels to hard or soft"
            )
        if self.labels == "teacher" and self.num_intervals > 1:
            return (
                f"labels are teacher's, anew at every step, but num_intervals is "
                f"{self.num_intervals} and earlier stages' labels stay; set labels to hard or soft"
            )
        if self.Initialize_Label_With_Another_Model and self.Initialize_Label_Model is None:
            return (
                "Initialize_Label_With_Another_Model is true, but Initialize_Label_Model names no "
                "network; name one or set the first to false"
            )
        if self.Initialize_Label_Model and not self.Initialize_Label_With_Another_Model:
            return (
                f"Initialize_Label_Model is {self.Initialize_Label_Model}, but "
                "Initialize_Label_With_Another_Model is false; set it to true, or leave the first "
                "out"
            )
        picks = self.pix_init == "samples_predicted_correctly"
        if self.Initialize_Label_With_Another_Model and self.labels != "soft" and not picks:
            return (
                "Initialize_Label_With_Another_Model is true, but experts give neither labels "
                f"({self.labels}) nor images (pix_init {self.pix_init}); set it to false"
            )
        if self.Label_Model_Timestamp != -1 and not picks:
            return (
                f"Label_Model_Timestamp is {self.Label_Model_Timestamp}, but with pix_init "
                f"{self.pix_init} no snapshot but the last is asked; leave it out or set pix_init "
                "to samples_predicted_correctly"
            )
        return ""

    def _matching_at_odds(self) -> str:
        ratios = {"loss": self.loss_ratio, "depth": self.depth_ratio}
        for name, ratio in ratios.items():
            if ratio and not ratios.get(self.keep):
                none = "" if self.keep == "all" else f" and {self.keep}_ratio 0"
                return (
                    f"{name}_ratio is {ratio}, but keep is {self.keep}{none}, which leaves no "
                    f"weight out; set keep to {name}, or {name}_ratio to 0"
                )
        if self.legacy_scale and self.gradient != "tesla":
            return (
                f"legacy_scale halves the tesla gradient, but gradient is {self.gradient}; set "
                "gradient to tesla or legacy_scale to false"
            )
        if self.ema_eval == "released" and self.ema_decay is None:
            return "ema_eval is released, but no ema_decay averages the images; set ema_decay"
        return self._protocol_at_odds()

    def _protocol_at_odds(self) -> str:
        if self.protocol == "idc" and self.num_intervals > 1:
            return (
                f"protocol is idc, which trains on one set, but num_intervals is "
                f"{self.num_intervals}; set protocol to mtt"
            )
        if self.protocol == "idc" and self.batch_train not in (type(self).batch_train, 64):
            return (
                f"batch_train is {self.batch_train}, but protocol idc trains by batches of 64; "
                "leave it out, or set protocol to mtt"
            )
        return ""
