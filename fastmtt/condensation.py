"""Gradient matching as an objective: IDC's outer iterations (arXiv 2205.14959).

An outer iteration takes a network of its own and, ``inner_loop`` times, matches the gradient of
every class's real images by that of its synthetic ones, and trains the network on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtt import draws
from fastmtt.augment import DSA, Parameters
from fastmtt.diffaug import DiffAug, for_batch
from fastmtt.experts.published import Experts
from fastmtt.gradmatch import MatchSizes, match_gradients
from fastmtt.inner_networks import InnerNetworks
from fastmtt.objective import Setting, Told
from fastmtt.protocol import is_large
from fastmtt.run import State
from fastmtt.smoothing import MovingAverage
from fastmtt.synthetic import Synthetic, class_rows
from fastmtt.turns import Turns

_AT_ONCE = 10  # classes: more would fill a GPU's memory, and a CPU has no use for them
# Sizes that lr_img is given for; of other data sets 32, or ImageNet's.
_SIZES = {"ImageNet": 224, "MNIST": 28, "FashionMNIST": 28}
_VELOCITY = "momentum_images"


class Condensation:
    """IDC's objective; stored images lie in [0,1] at the start of each outer iteration.

    Attributes:
        rate: the images' learning rate: lr_img, in proportion to ipc and to an image's area.
    """

    average: MovingAverage | None = None
    rates = "lr_img"

    def __init__(self, setting: Setting) -> None:
        """Take the real images of each class and how they are augmented."""
        self.setting = setting
        config, dataset = setting.config, setting.dataset
        self.seed = setting.stage.seed(config.seed)
        self.networks = InnerNetworks(setting)
        augments = config.dsa and not config.no_aug
        self.augment = DiffAug(config.aug_type if augments else "none", shared=True)
        self.real_rows = [torch.from_numpy(rows) for rows in class_rows(dataset, 1)]
        self.batch_real = min(config.batch_real, *map(len, self.real_rows))
        side = dataset.image_shape[-1]
        other = _SIZES["ImageNet"] if is_large(dataset.image_shape) else 32
        usual = _SIZES.get(config.dataset, other)
        self.rate = config.lr_img * config.ipc / 10 * (side / usual) ** 2

    @property
    def sizes(self) -> MatchSizes:
        """What a match is of, for :func:`fastmtt.budget.condensing`."""
        config, dataset = self.setting.config, self.setting.dataset
        classes = len(dataset.classes)
        stored = self.setting.count // classes
        decoded = self.setting.parametrisation.count(stored)
        return MatchSizes(
            classes,
            min(classes, _AT_ONCE),
            stored,
            decoded,
            self.batch_real,
            min(decoded, config.batch_syn_max),
            min(config.net_batch, self.networks.real.count),
            dataset.image_shape,
        )

    def learn(self, made: Synthetic) -> None:
        """See :class:`fastmtt.objective.Objective`."""
        classes, ipc = len(self.setting.dataset.classes), self.setting.config.ipc
        self.set, self.velocity = made, torch.zeros_like(made.images)
        stages = torch.arange(len(made.images), device=made.images.device).view(-1, classes, ipc)
        self.rows = stages.transpose(0, 1).flatten(1)  # each class's, earlier stages' first
        self.frozen = self.setting.stage.frozen // classes
        self.turns = Turns(classes, self.rate, self.setting.config.mom_img, made.images)

    def open(self, store: Experts | None, experts: list[int]) -> None:
        """See :class:`fastmtt.objective.Objective`."""
        self.networks.store, self.networks.experts = store, experts

    @torch.no_grad()
    def step(self, iteration: int) -> Told:
        """See :class:`fastmtt.objective.Objective`; the loss is the mean of all distances."""
        loops = self.setting.config.inner_loop
        self.set.images.clamp_(0, 1)
        theta = self.networks.begin(iteration, self.set.images)
        losses = [self._match(theta, iteration * loops)]
        for inner in range(1, loops):
            theta = self.networks.go_on(theta, inner - 1)
            losses.append(self._match(theta, iteration * loops + inner))
        mean = torch.stack(losses).mean()
        seen = [mean, self.set.lr.to(mean), self.set.images.isfinite().all().to(mean)]
        loss, lr, finite = torch.stack(seen).tolist()
        return Told(loss, lr, bool(finite))

    def state(self, iteration: int) -> State:
        """See :class:`fastmtt.objective.Objective`."""
        return {_VELOCITY: self.velocity}, {"choices": self.setting.choices.state()}

    def restore(self, state: State) -> None:
        """See :class:`fastmtt.objective.Objective`."""
        tensors, values = state
        velocity = tensors[_VELOCITY]
        if velocity.shape != self.velocity.shape:
            raise ValueError(f"a momentum is {[*velocity.shape]}")
        self.velocity = velocity
        self.setting.choices.restore(values["choices"])

    def evaluated_from(self, networks: int) -> Tensor | None:
        """See :class:`fastmtt.objective.Objective`."""
        return None

    def _match(self, theta: Tensor, number: int) -> Tensor:
        """Match every class once, each in its turn; the mean distance.

        Args:
            theta: the network's weights [1,P].
            number: of this match in the run's stage.
        """
        images, velocity = self.set.images[self.rows], self.velocity[self.rows]
        self.turns.wait(images, velocity)
        packed = self.setting.student.pack(theta[0])
        parts = [
            self._of_classes(packed, images[some[0] : some[-1] + 1], some, number)
            for some in _groups(len(images))
        ]
        losses, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
        gradients[:, : self.frozen] = 0
        self.turns.take(images, velocity, gradients)
        self.set.images[self.rows], self.velocity[self.rows] = images, velocity
        return losses.mean()

    def _of_classes(
        self, theta: Tensor, stored: Tensor, classes: range, number: int
    ) -> tuple[Tensor, Tensor]:
        """Distances [S] of some classes, and their gradients in stored images [S,n,...]."""
        config, device = self.setting.config, stored.device
        parametrisation, augment = self.set.parametrisation, self.augment
        whole = parametrisation.sample(stored, None)
        class_of = torch.arange(classes[0], classes[-1] + 1, device=device)[:, None]
        picked = class_of - classes[0], self._chosen(classes, whole.shape[1], number).to(device)
        drawn = self._augmentation(classes, number)
        of_real, of_images = (
            for_batch(drawn, count) for count in (self.batch_real, picked[1].shape[1])
        )
        real = self.setting.dataset.train_images[self._real(classes, number).to(device)]
        loss, g = match_gradients(
            self.setting.student,
            theta,
            (augment.apply(real, of_real), class_of.expand(-1, self.batch_real)),
            (augment.apply(whole[picked], of_images), class_of.expand(-1, picked[1].shape[1])),
            config.metric,
            bias=config.bias,
            fc=config.fc,
        )
        back = torch.zeros_like(whole)
        back[picked] = augment.pull_back(g, of_images)
        return loss, parametrisation.pull_back(back, None, stored.shape[1])

    def _real(self, classes: range, number: int) -> Tensor:
        """Rows [S,B] of real images: each class in shuffled passes, no batch cut short."""
        picked = []
        for label in classes:
            rows = self.real_rows[label]
            turn, place = divmod(number, len(rows) // self.batch_real)
            order = draws.stream(self.seed, "match real", label, turn).permutation(len(rows))
            begin = place * self.batch_real
            picked.append(rows[order[begin : begin + self.batch_real]])
        return torch.stack(picked)

    def _chosen(self, classes: range, count: int, number: int) -> Tensor:
        """Which of a class's training images are matched [S,b]: all, or some where too many."""
        most = self.setting.config.batch_syn_max
        if count <= most:
            return torch.arange(count).expand(len(classes), -1)
        streams = [draws.stream(self.seed, "match subset", number, label) for label in classes]
        return torch.stack([torch.from_numpy(rng.permutation(count)[:most]) for rng in streams])

    def _augmentation(self, classes: range, number: int) -> Parameters:
        """One draw a class, for its real and its synthetic images."""
        shape = self.setting.dataset.image_shape
        streams = [draws.stream(self.seed, "match dsa", number, label) for label in classes]
        return DSA.stack([self.augment.draw(rng, 1, shape) for rng in streams])


def _groups(classes: int) -> list[range]:
    return [range(i, min(i + _AT_ONCE, classes)) for i in range(0, classes, _AT_ONCE)]
