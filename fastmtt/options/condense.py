"""The keys of gradient matching, and of the parametrisation that came with it (IDC)."""

from dataclasses import dataclass
from typing import Literal

from fastmtt.options.base import ExpertConfig

# Keys by subject, in the order of --help.
GRADIENTS = "metric bias fc batch_real batch_syn_max aug_type inner_loop"
INNER_NETWORKS = (
    "net_lr net_wd net_batch net_epoch n_data earlier_epochs early pt_from mixup_net mix_p beta"
)

# What gradient matching has no use for, with the reason.
TRAJECTORIES = {
    "zca": "images are stored in [0,1] and normalised to train",
    "texture": "images are augmented as they are stored, class by class",
    "labels": "each class is matched by itself, with the labels it has",
    "gradient": "no student's steps are gone back through",
    "keep": "metric, bias and fc say which gradients count",
    "threshold": "distances of gradients have no common scale",
    "ema_decay": "no average of the images is kept",
    "segments": "no segments are matched",
    "rng": "only the order of the trajectory programs' draws can be replayed",
}


@dataclass(frozen=True, kw_only=True)
class CondenseConfig(ExpertConfig):
    """What a distillation by gradient matching is told besides.

    Attributes:
        objective: Match expert trajectories, or the gradients of real images (gradmatch) [IDC].
        factor: A stored image holds so many images on a side, each enlarged to train on [IDC].
        decode_type: They are enlarged from single cells of that size; by all factors up to it
            (multi); or by it as far as batch_syn_max allows, the rest by less (bound) [IDC].
        mom_img: Momentum of the distilled images [IDC].
        metric: The distance of two gradients: mse, l1, l1_mean or cos, summed over convolutions
            [IDC].
        bias: Biases' and norms' gradients count too [IDC].
        fc: The classifier's gradient counts too [IDC].
        batch_real: Real images of a class whose gradient is matched [IDC].
        batch_syn_max: Training images of a class that are matched at most; random ones of more
            [IDC].
        aug_type: Operations that a class's real and distilled images share in a match, joined by
            underscores; the networks are trained with the same without cutout where they mix
            [IDC].
        inner_loop: Matches of every class in an outer iteration, each but the first behind some
            training of its network [IDC].
        net_lr: Learning rate of the networks whose gradients are matched [IDC's lr].
        net_wd: Their weight decay [IDC's wd].
        net_batch: Images in their batches [IDC's batch_size].
        net_epoch: Passes of n_data images between two matches [IDC].
        n_data: Real images that a network is trained on in such a pass [IDC].
        earlier_epochs: Epochs that a later stage's network is first trained on each earlier stage's
            set, all images up to it [PDD].
        early: Epochs it is trained on all real images before its first match [IDC].
        pt_from: It begins as this snapshot of an expert (-1, with fresh weights) [IDC].
        mixup_net: CutMix on the batches it is trained on, or vanilla: none [IDC].
        mix_p: Chance that a batch is mixed [IDC].
        beta: Of the distribution Beta(beta, beta) of the share that is kept [IDC].
    """

    objective: Literal["matching", "gradmatch"] = "matching"
    factor: int = 1
    decode_type: Literal["single", "multi", "bound"] = "single"
    mom_img: float = 0.5
    metric: Literal["mse", "l1", "l1_mean", "cos"] = "l1"
    bias: bool = False
    fc: bool = False
    batch_real: int = 64
    batch_syn_max: int = 128
    aug_type: str = "color_crop_cutout"
    inner_loop: int = 100
    net_lr: float = 0.01
    net_wd: float = 5e-4
    net_batch: int = 64
    net_epoch: int = 1
    n_data: int = 500
    earlier_epochs: int = 200
    early: int = 0
    pt_from: int = -1
    mixup_net: Literal["cut", "vanilla"] = "cut"
    mix_p: float = 1.0
    beta: float = 1.0

    @property
    def reads_experts(self) -> bool:
        """Whether the run needs experts."""
        return self.objective == "matching" or self.pt_from >= 0
