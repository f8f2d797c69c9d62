"""The keys of start images and labels (DATM, TESLA)."""

from dataclasses import dataclass
from typing import Literal

from fastmtt.options.trajectories import TrajectoryConfig


@dataclass(frozen=True, kw_only=True)
class StartConfig(TrajectoryConfig):
    """How images and labels start, and how labels are learned.

    Attributes:
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
    """

    pix_init: Literal["real", "noise", "samples_predicted_correctly"] = "real"
    labels: Literal["hard", "soft", "teacher"] = "hard"
    lr_y: float = 2.0
    Momentum_y: float = 0.9
    Label_Model_Timestamp: int = -1
    Initialize_Label_With_Another_Model: bool = False
    Initialize_Label_Model: str | None = None

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

    def _labels_at_odds(self) -> str:
        if self.labels == "soft" and self.pix_init == "noise":
            return "labels are soft, but experts can label no noise: pix_init must not be noise"
        if self.labels == "teacher" and self.segments > 1:
            return (
                f"labels are teacher's, those of the one target of a step, but segments is "
                f"{self.segments}; set segments to 1, or labels to hard or soft"
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
        if self.objective == "matching" and self.epochs_read > self.expert_length:
            return (
                f"Label_Model_Timestamp is {self.Label_Model_Timestamp}, but experts have "
                f"snapshots 0 to {self.expert_length}; -1 is the last"
            )
        if self.Label_Model_Timestamp != -1 and not picks:
            return (
                f"Label_Model_Timestamp is {self.Label_Model_Timestamp}, but with pix_init "
                f"{self.pix_init} no snapshot but the last is asked; leave it out or set pix_init "
                "to samples_predicted_correctly"
            )
        return ""
