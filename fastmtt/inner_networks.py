"""The networks whose gradients are matched: one an outer iteration, trained as matching goes on.

IDC (Kim et al., ICML 2022, arXiv 2205.14959); on a later stage of PDD (Chen et al., ICLR 2024,
arXiv 2310.06982) each is first trained on what the earlier stages distilled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmtt import draws
from fastmtt.cutmix import CutMix
from fastmtt.diffaug import DiffAug, without
from fastmtt.evaluation import examples_of
from fastmtt.experts.published import Experts
from fastmtt.objective import Setting
from fastmtt.protocol import idc_milestones
from fastmtt.recipe import Examples, Recipe
from fastmtt.student import initial_weights
from fastmtt.student.zoo import make_network
from fastmtt.training import train

MOMENTUM = 0.9  # of the published optimiser of these networks


@dataclass(frozen=True)
class SomeRows:
    """A schedule of so many random examples an epoch.

    Attributes:
        count: how many there are.
        some: how many an epoch sees.
        seed: of the draws.
        network: whose epochs they are.
    """

    count: int
    some: int
    seed: int
    network: int

    def rows(self, epoch: int) -> Tensor:
        """See :class:`fastmtt.recipe.Schedule`."""
        rng = draws.stream(self.seed, "inner rows", self.network, epoch)
        return torch.from_numpy(rng.permutation(self.count)[: self.some])

    def describe(self) -> dict[str, Any]:
        """See :class:`fastmtt.recipe.Schedule`."""
        return {"inner rows": self.some}


class InnerNetworks:
    """The network of the outer iteration under way."""

    def __init__(self, setting: Setting) -> None:
        """Take how to train from the configuration."""
        self.setting = setting
        config, dataset = setting.config, setting.dataset
        self.seed = setting.stage.seed(config.seed)
        self.make = partial(
            make_network,
            config.model,
            image_shape=dataset.image_shape,
            classes=len(dataset.classes),
        )
        self.real = Examples(dataset.train_images, dataset.train_labels)
        cut = config.mixup_net == "cut"
        self.recipe = Recipe(
            0,
            config.net_batch,
            config.net_lr,
            MOMENTUM,
            config.net_wd,
            augment=self._augment(config.aug_type),
            cutmix=CutMix(len(dataset.classes), config.mix_p, config.beta) if cut else None,
            precision=config.precision,
            graph=not config.no_graph,
        )
        self.iteration = 0
        self.velocity: Tensor | None = None
        self.store: Experts | None = None
        self.experts: list[int] = []

    def begin(self, iteration: int, like: Tensor) -> Tensor:
        """Weights [1,P] of an outer iteration's network, where its first match is.

        Args:
            iteration: its number.
            like: gives the weights' dtype and device.
        """
        config = self.setting.config
        if config.pt_from >= 0:
            assert self.store is not None
            pick = draws.stream(self.seed, "pretrained", iteration).integers(len(self.experts))
            weights = self.store.segment(self.experts[pick], config.pt_from, config.pt_from)[0]
        else:
            weights = initial_weights(self.make, self.seed, "inner network init", iteration)
        self.iteration, self.velocity = iteration, None
        theta = self._after_earlier_sets(weights[None].to(like))
        if config.early:
            recipe = replace(self.recipe, epochs=config.early)
            theta = self._trained(theta, recipe, "early", 0)
        return theta

    def go_on(self, theta: Tensor, inner: int) -> Tensor:
        """The weights after the training that follows an inner loop's matches."""
        config, count = self.setting.config, self.real.count
        batches = -(-config.n_data // config.net_batch)
        some = min(count, batches * config.net_batch)
        recipe = replace(
            self.recipe,
            epochs=(inner + 1) * config.net_epoch,
            schedule=SomeRows(count, some, self.seed, self.iteration),
        )
        return self._trained(theta, recipe, "inner network", inner * config.net_epoch)

    def _after_earlier_sets(self, theta: Tensor) -> Tensor:
        """Weights after training on each earlier stage's set, all images up to it."""
        config = self.setting.config
        epochs = config.earlier_epochs
        recipe = replace(
            self.recipe,
            epochs=epochs,
            augment=self._augment(config.dsa_strategy),
            milestones=idc_milestones(epochs),
        )
        for number, earlier in enumerate(self.setting.stage.sets, 1):
            theta = train(
                self.setting.student,
                theta,
                examples_of(earlier),
                recipe,
                seed=self.seed,
                what=f"earlier set {number}",
                members=[self.iteration],
            )
        return theta

    def _trained(self, theta: Tensor, recipe: Recipe, what: str, done: int) -> Tensor:
        """Weights after training on real images; the momentum goes on from call to call."""

        def keep(_: int, __: Tensor, velocity: Tensor | None) -> None:
            self.velocity = velocity

        return train(
            self.setting.student,
            theta,
            self.real,
            recipe,
            seed=self.seed,
            what=what,
            members=[self.iteration],
            epochs_done=done,
            velocity=self.velocity,
            after_epoch=keep,
        )

    def _augment(self, strategy: str) -> DiffAug | None:
        """Each image's own; CutMix takes cutout's place."""
        config = self.setting.config
        if not config.dsa or config.no_aug:
            return None
        return DiffAug(without(strategy, *(["cutout"] if config.mixup_net == "cut" else [])))
