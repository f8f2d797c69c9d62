"""The keys of trajectory matching: experts' segments, the student's steps, what counts of both."""

from dataclasses import dataclass
from typing import Literal

from fastmtt.options.condense import CondenseConfig

Gradient = Literal["exact", "tesla"] | int


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig(CondenseConfig):
    """How trajectories are matched, and how long the experts are whose segments they are.

    Attributes:
        expert_lr: Learning rate of the experts this command trains itself.
        expert_batch: Real images in a training batch of the experts this command trains itself.
        train_epochs: Epochs of each expert this command trains itself (null, as many as matching
            reads) [MTT's buffer].
        batch_syn: Distilled images in a student's batch (null, all) [MTT].
        Sequential_Generation: The range of start epochs grows up to max_start_epoch [DATM].
        current_max_start_epoch: Where its end begins [DATM].
        expansion_end_epoch: Iteration at which it has grown to its end [DATM].
        threshold: Steps whose loss is above it are left out (null, none) [DATM].
        keep: Weights that count in matching: all, those with the largest loss, or the deep ones
            [PAD].
        loss_ratio: Share of the weights that is left out, those with the smallest loss [PAD].
        depth_ratio: Share that is left out, the first ones [PAD].
        legacy_scale: Halve the tesla gradient of the images, as TESLA's program does; its lr_img
            is tuned for it [TESLA].
        expert_epochs: Epochs between the start and the target on a trajectory [MTT].
        syn_steps: The student's steps from the start [MTT].
        min_start_epoch: First epoch a segment may start at [DATM].
        max_start_epoch: Segments start before this epoch [MTT].
        no_aug: Leave DSA out of the student's steps; evaluation keeps it [MTT].
        max_experts: Use the first so many experts only (null, all); MTT counts them in each file
            of ten.
        gradient: exact, tesla as in TESLA (arXiv 2211.10586), or the number of last steps a
            truncated one goes back through.
        segments: Segments in an outer step; their losses' mean is the step's.
        rng: Where batches and augmentation are drawn: counter is equal on every device and
            however segments are grouped, published replays the published programs' order.
        memory: Bytes kept of a student's steps beyond weights and gradients, so that they need not
            be computed twice (null, on a CPU up to an eighth of what is free and 3 GiB, on a GPU
            none); changes no bit.
    """

    expert_lr: float = 0.01
    expert_batch: int = 256
    train_epochs: int | None = None
    batch_syn: int | None = None
    expert_epochs: int = 3
    syn_steps: int = 20
    min_start_epoch: int = 0
    max_start_epoch: int = 25
    no_aug: bool = False
    max_experts: int | None = None
    Sequential_Generation: bool = False
    current_max_start_epoch: int = 20
    expansion_end_epoch: int = 3000
    threshold: float | None = None
    keep: Literal["all", "loss", "depth"] = "all"
    loss_ratio: float = 0.0
    depth_ratio: float = 0.0
    gradient: Gradient = "exact"
    legacy_scale: bool = False
    segments: int = 1
    rng: Literal["counter", "published"] = "counter"
    memory: int | None = None

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

    def _epochs_at_odds(self) -> str:
        """Say which experts or segments do not go together; empty: none."""
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
        return ""
