"""The keys of `python -m fastmtt.buffer`."""

from dataclasses import dataclass
from typing import ClassVar

from fastmtt.options.base import DATA, EXPERTS, MACHINE, NETWORK, ExpertConfig


@dataclass(frozen=True, kw_only=True)
class BufferConfig(ExpertConfig):
    """Train experts on real data and store their trajectories.

    Attributes:
        train_epochs: Epochs of each expert; its start and every epoch's end are stored [MTT].
        lr_teacher: The experts' learning rate [MTT].
        mom: The experts' momentum [MTT].
        l2: The experts' weight decay [MTT].
        decay: Drop the experts' learning rate to a tenth halfway [MTT].
        experts_at_once: Experts trained side by side (null, as fits); changes no bit.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "data": f"{DATA} held_out",
        "network and its batches": NETWORK,
        "experts": "method buffer_path num_experts train_epochs lr_teacher mom l2 decay "
        f"experts_at_once {EXPERTS}",
        "run": f"{MACHINE} resume",
    }

    train_epochs: int = 50
    lr_teacher: float = 0.01
    mom: float = 0.0
    l2: float = 0.0
    decay: bool = False
    experts_at_once: int | None = None

    @property
    def expert_length(self) -> int:
        """Epochs that missing experts are trained for."""
        return self.train_epochs

    @property
    def epochs_read(self) -> int:
        """Epochs that experts must have."""
        return self.train_epochs
