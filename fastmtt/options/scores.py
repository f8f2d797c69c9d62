"""The keys of `python -m fastmtt.scores`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastmtt.errors import FastmttError
from fastmtt.options.base import DATA, MACHINE, NETWORK, BaseConfig

Score = Literal["grand", "el2n", "forgetting", "uncertainty"]


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(BaseConfig):
    """Order each class's training images from easy to hard, by networks trained on all of them.

    Attributes:
        score: What is called hard: a large gradient or a large error early in training (grand,
            el2n: arXiv 2107.07075), being forgotten often in training (forgetting: arXiv
            1812.05159), or a trained network's uncertainty.
        uncertainty: Its measure: the prediction's entropy, 1 - the margin between the two likeliest
            classes, or 1 - the likeliest one's probability (confidence).
        networks: Networks whose scores are averaged; those of a file to resume are kept.
        score_epochs: Epochs a network is trained before grand or el2n [PAD's program].
        train_epochs: Epochs of training that forgetting watches, or that come before uncertainty.
        lr_teacher: The networks' learning rate.
        mom: Their momentum; as in evaluation, for experts' plain SGD is not far after ten epochs.
        l2: Their weight decay; as in evaluation.
        indices_path: Folder of the index files, where buffer and distill find them by sort_method.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "data": f"{DATA} held_out",
        "scores": "score uncertainty networks score_epochs train_epochs indices_path",
        "network and its batches": f"{NETWORK} lr_teacher mom l2",
        "run": f"{MACHINE} resume",
    }

    score: Score = "grand"
    uncertainty: Literal["entropy", "margin", "confidence"] = "entropy"
    networks: int = 10
    score_epochs: int = 10
    train_epochs: int = 50
    lr_teacher: float = 0.01
    mom: float = 0.9
    l2: float = 5e-4
    indices_path: str = "data_indices"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.uncertainty != "entropy" and self.score != "uncertainty":
            raise FastmttError(
                f"uncertainty is {self.uncertainty}, but score is {self.score}; set score to "
                "uncertainty, or leave it out"
            )

    @property
    def epochs(self) -> int:
        """How long this score's networks are trained."""
        return self.score_epochs if self.score in ("grand", "el2n") else self.train_epochs
