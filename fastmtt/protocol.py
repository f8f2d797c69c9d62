"""How evaluation networks are trained: the trajectory-matching family's protocol, and IDC's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmtt.augment import DSA
from fastmtt.cutmix import CutMix
from fastmtt.data import DataSet
from fastmtt.diffaug import DiffAug, without
from fastmtt.errors import FastmttError
from fastmtt.options import BaseConfig
from fastmtt.recipe import Examples, Recipe

Kind = Literal["mtt", "idc"]
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4

IDC_LR, _IDC_BATCH = 0.01, 64
_CUTMIX_CHANCE = 0.5
_SMALL = 64  # pixels a side up to which IDC augments by DSA's operations
_UNFLIPPED = ("MNIST", "SVHN")


@dataclass(frozen=True)
class Protocol:
    """How evaluation networks are trained (MTT's, the family's default).

    SGD with momentum 0.9 and weight decay 5e-4 for ``epochs + 1`` epochs; after the one with index
    ``epochs // 2 + 1`` the learning rate drops to a tenth and the momentum is forgotten.

    Attributes:
        model: factory name of the network.
        networks: how many are trained.
        epochs: ``epoch_eval_train``.
        batch_train: images a step.
        augment: DSA on every batch, or None.
        seed: the run's seed.
        precision: what convolutions multiply, as for ``make_student``.
        graph: whether steps on a GPU are recorded as CUDA graphs.
    """

    model: str
    networks: int
    epochs: int
    batch_train: int
    augment: DSA | None
    seed: int
    precision: str | None = None
    graph: bool = True

    @property
    def length(self) -> int:
        """Epochs a network is trained for."""
        return self.epochs + 1

    @property
    def validations(self) -> tuple[int, ...]:
        """Numbers of epochs done at which a network is tested, but for the end."""
        return ()

    def rate(self, learned: float) -> float:
        """The learning rate on a distilled set that comes with this one."""
        return learned

    def recipe(self, examples: Examples, lrs: list[float]) -> Recipe:
        """The way to train on a set."""
        return Recipe(
            epochs=self.length,
            batch_size=min(self.batch_train, examples.count),
            lr=lrs,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            decay_after=self.epochs // 2 + 1,
            augment=self.augment,
            precision=self.precision,
            graph=self.graph,
        )


@dataclass(frozen=True)
class IDCProtocol(Protocol):
    """IDC's (Kim et al., 2022, arXiv 2205.14959), for images of up to 64 pixels a side.

    As the family's but for exactly ``epochs`` epochs at a learning rate of its own, a fifth of it
    from two thirds of them on and a fifth of that from five sixths on, the momentum kept, with
    CutMix behind the augmentation.

    Attributes:
        classes: K.
        lr: learning rate, whatever a set comes with.
        num_val: how often a network is tested, evenly over its epochs, the last time at the end.
    """

    classes: int = 0
    lr: float = IDC_LR
    num_val: int = 1

    @property
    def length(self) -> int:
        """See :class:`Protocol`."""
        return self.epochs

    @property
    def validations(self) -> tuple[int, ...]:
        """See :class:`Protocol`."""
        return tuple(self.epochs * part // self.num_val for part in range(1, self.num_val))

    def rate(self, learned: float) -> float:
        """See :class:`Protocol`."""
        return self.lr

    def recipe(self, examples: Examples, lrs: list[float]) -> Recipe:
        """See :class:`Protocol`."""
        passed = 2 * self.epochs // 3, 5 * self.epochs // 6
        return Recipe(
            epochs=self.length,
            batch_size=min(self.batch_train, examples.count),
            lr=lrs,
            momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            augment=self.augment,
            precision=self.precision,
            graph=self.graph,
            cutmix=CutMix(self.classes, chance=_CUTMIX_CHANCE),
            milestones=tuple(done for done in passed if done),  # a single epoch keeps the rate
            gamma=0.2,
        )


def make_protocol(
    kind: Kind,
    config: BaseConfig,
    dataset: DataSet,
    *,
    networks: int,
    epochs: int,
    batch_train: int | None = None,
    lr: float | None = None,
    num_val: int = 1,
) -> Protocol:
    """The protocol of a configuration.

    Args:
        kind: "mtt" or "idc".
        config: gives the network, its augmentation and the machine.
        dataset: what is tested on.
        networks: how many are trained.
        epochs: ``epoch_eval_train``.
        batch_train: images a step; None for the configuration's own, or IDC's 64.
        lr: learning rate of IDC's; None for its 0.01.
        num_val: how often IDC's tests a network.

    Raises:
        FastmttError: IDC's is asked for images that it augments in another way, or for no epochs.
    """
    if kind == "mtt":
        augment = DSA(config.dsa_strategy) if config.dsa else None
        batch = batch_train or config.batch_train
        machine = config.seed, config.precision, not config.no_graph
        return Protocol(config.model, networks, epochs, batch, augment, *machine)
    if max(dataset.image_shape[1:]) > _SMALL:
        raise FastmttError(
            f"protocol idc is built for images of up to {_SMALL} pixels a side, not for what IDC "
            f"does with ImageNet's, and {dataset.name} has {dataset.image_shape[1]}x"
            f"{dataset.image_shape[2]}; lower res, or set protocol to mtt"
        )
    if epochs < 1:
        raise FastmttError("protocol idc trains for epoch_eval_train epochs, got 0; give 1 or more")
    # CutMix cuts already, and a mirrored digit is another one
    unwanted = ("cutout", "flip") if dataset.name in _UNFLIPPED else ("cutout",)
    return IDCProtocol(
        config.model,
        networks,
        epochs,
        batch_train or _IDC_BATCH,
        DiffAug(without(config.dsa_strategy, *unwanted)) if config.dsa else None,
        config.seed,
        config.precision,
        graph=not config.no_graph,
        classes=len(dataset.classes),
        lr=IDC_LR if lr is None else lr,
        num_val=num_val,
    )
