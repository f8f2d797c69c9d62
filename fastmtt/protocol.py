"""How evaluation networks are trained: the trajectory-matching family's protocol, and IDC's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from fastmtt.augment import DSA
from fastmtt.cutmix import CutMix
from fastmtt.data import DataSet, Normalised
from fastmtt.diffaug import DiffAug, without
from fastmtt.errors import FastmttError
from fastmtt.imagenet_augment import ImageNetAugment
from fastmtt.options import BaseConfig
from fastmtt.recipe import Augmentation, Examples, Recipe

Kind = Literal["mtt", "idc"]
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4

IDC_LR = 0.01
_MTT_EPOCHS = _IDC_EPOCHS = 1000
_FULL_RATE_STAGES = 5  # of PDD's on IDC
_STAGE_EPOCHS, _STAGE_TESTS = 500, 50  # of PDD's on IDC
_TESTS = 4
_SMALL = 64  # pixels a side up to which IDC augments by DSA's operations
_MANY = 100  # classes from which IDC trains ImageNet's networks otherwise
# Images a class that are trained on, at most, and the epochs of ImageNet's networks.
_LARGE_EPOCHS = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500), (2**31, 300))
_DENSE_EPOCHS = 400
_UNFLIPPED = ("MNIST", "SVHN")


class _Usual(NamedTuple):
    """IDC's values for a data set."""

    lr: float
    weight_decay: float
    batch: int


_FEW_CLASSES, _MANY_CLASSES = _Usual(IDC_LR, 5e-4, 64), _Usual(0.1, 1e-4, 128)


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
        augment: of every batch, or None.
        seed: the run's seed.
        precision: what convolutions multiply, as for ``make_student``.
        graph: whether steps on a GPU are recorded as CUDA graphs.
    """

    model: str
    networks: int
    epochs: int
    batch_train: int
    augment: Augmentation | None
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

    def stage_recipe(self, number: int, examples: Examples, lrs: list[float]) -> Recipe:
        """The way to train on a stage's union, from 0: the momentum goes on through all of them.

        PDD's (arXiv 2310.06982): a tenth of the learning rate from the middle on.
        """
        recipe = self.recipe(examples, lrs)
        return replace(recipe, decay_after=None, milestones=(self.epochs // 2 + 2,), gamma=0.1)


@dataclass(frozen=True)
class IDCProtocol(Protocol):
    """IDC's (Kim et al., 2022, arXiv 2205.14959).

    As the family's but for exactly ``epochs`` epochs at a learning rate of its own, a fifth of it
    from two thirds of them on and a fifth of that from five sixths on, the momentum kept, with
    CutMix behind the augmentation.

    Attributes:
        classes: K.
        lr: learning rate, whatever a set comes with.
        weight_decay: of the optimiser.
        cutmix_chance: that a batch is mixed.
        num_val: how often a network is tested, evenly over its epochs, the last time at the end.
    """

    classes: int = 0
    lr: float = IDC_LR
    weight_decay: float = WEIGHT_DECAY
    cutmix_chance: float = 0.5
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
        return Recipe(
            epochs=self.length,
            batch_size=min(self.batch_train, examples.count),
            lr=lrs,
            momentum=MOMENTUM,
            weight_decay=self.weight_decay,
            augment=self.augment,
            precision=self.precision,
            graph=self.graph,
            cutmix=CutMix(self.classes, chance=self.cutmix_chance),
            milestones=idc_milestones(self.epochs),
            gamma=0.2,
        )

    def stage_recipe(self, number: int, examples: Examples, lrs: list[float]) -> Recipe:
        """See :class:`Protocol`: PDD's on IDC, a set's own recipe, at half the rate behind five."""
        halved = number >= _FULL_RATE_STAGES
        return self.recipe(examples, [lr / 2 for lr in lrs] if halved else lrs)


def idc_milestones(epochs: int) -> tuple[int, ...]:
    """Numbers of epochs done at which IDC lowers the rate; a single epoch keeps it."""
    return tuple(done for done in (2 * epochs // 3, 5 * epochs // 6) if done)


def usual_epochs(
    kind: Kind,
    model: str,
    image_shape: tuple[int, ...],
    classes: int,
    stored: int,
    cells: int,
    stages: int = 1,
) -> int:
    """The published ``epoch_eval_train``.

    Args:
        kind: "mtt" or "idc".
        model: factory name of the network.
        image_shape: (C, H, W).
        classes: K.
        stored: images a class of the set.
        cells: images that a stored one gives.
        stages: of the set.
    """
    if kind == "mtt":
        return _MTT_EPOCHS
    if stages > 1:
        return _STAGE_EPOCHS
    if is_large(image_shape):
        epochs = next(epochs for most, epochs in _LARGE_EPOCHS if stored * cells <= most)
        return epochs * 2 // 3 if classes >= _MANY else epochs
    if model == "DenseNet" and stored >= 50 and cells > 1:
        return _DENSE_EPOCHS
    return _IDC_EPOCHS


def usual_tests(stages: int) -> int:
    """How often IDC's program tests a network, on each of a set's stages."""
    return _STAGE_TESTS if stages > 1 else _TESTS


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
        batch_train: images a step; None for the configuration's own, or IDC's.
        lr: learning rate of IDC's; None for its own.
        num_val: how often IDC's tests a network.

    Raises:
        FastmttError: IDC's is asked for whitened images that are large, or for no epochs.
    """
    if kind == "mtt":
        augment = DSA(config.dsa_strategy) if config.dsa else None
        batch = batch_train or config.batch_train
        machine = config.seed, config.precision, not config.no_graph
        return Protocol(config.model, networks, epochs, batch, augment, *machine)
    if epochs < 1:
        raise FastmttError("protocol idc trains for epoch_eval_train epochs, got 0; give 1 or more")
    large, classes = is_large(dataset.image_shape), len(dataset.classes)
    usual = _MANY_CLASSES if large and classes >= _MANY else _FEW_CLASSES
    return IDCProtocol(
        config.model,
        networks,
        epochs,
        batch_train or usual.batch,
        _idc_augment(config, dataset, large),
        config.seed,
        config.precision,
        graph=not config.no_graph,
        classes=classes,
        lr=usual.lr if lr is None else lr,
        weight_decay=usual.weight_decay,
        cutmix_chance=1.0 if large else 0.5,
        num_val=num_val,
    )


def _idc_augment(config: BaseConfig, dataset: DataSet, large: bool) -> Augmentation | None:
    """What IDC does to images before CutMix, which takes cutout's place."""
    if not config.dsa:
        return None
    if not large:
        # a mirrored digit is another one
        unwanted = ("cutout", "flip") if dataset.name in _UNFLIPPED else ("cutout",)
        return DiffAug(without(config.dsa_strategy, *unwanted))
    if not isinstance(dataset.space, Normalised) or dataset.image_shape[0] != 3:
        what = "has no colours" if dataset.image_shape[0] != 3 else "is whitened"
        raise FastmttError(
            f"protocol idc changes colours of images of more than {_SMALL} pixels a side, and "
            f"{dataset.name} {what}; set dsa to false, or protocol to mtt"
        )
    return ImageNetAugment(dataset.space)


def is_large(image_shape: tuple[int, ...]) -> bool:
    """Whether IDC treats images (C, H, W) as it treats ImageNet's."""
    return max(image_shape[1:]) > _SMALL
