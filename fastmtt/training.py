"""Training S students side by side: experts, evaluation networks and baselines all use this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from fastmtt import draws, ops
from fastmtt.augment import DSA
from fastmtt.batches import Draws, PlacedDraws, side_by_side
from fastmtt.capture import Captured, Latest, can_capture
from fastmtt.recipe import Examples, Images, Recipe, Schedule, Sharpness
from fastmtt.sweeps import empty_rows

__all__ = [
    "Examples",
    "Images",
    "Network",
    "Recipe",
    "Schedule",
    "Sharpness",
    "accuracy",
    "students_at_once",
    "train",
]


class Network(Protocol):
    """What training asks of a network: of a student (``fastmtt.student``) or a single one."""

    def pack(self, flat: Tensor) -> Tensor:
        """Flat vectors [S,P] from the public into the network's own order."""
        ...

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of :meth:`pack`."""
        ...

    def gradient(
        self,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss [S] and its gradient [S,P], written to ``into``, on images [S,B,C,H,W]."""
        ...

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs [S,B,K], without a graph."""
        ...


def train(
    student: Network,
    theta: Tensor,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    what: str,
    members: Sequence[int],
    epochs_done: int = 0,
    velocity: Tensor | None = None,
    after_epoch: Callable[[int, Tensor, Tensor | None], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Tensor:
    """Train S students; each one's draws depend on its member number, not on its company.

    Begun with what an earlier call gave to ``after_epoch``, it goes on to the same bits.

    Args:
        student: the network.
        theta: start weights [S,P] in the public order.
        examples: what to train on.
        recipe: how.
        seed: the run's seed.
        what: names the draws, for example "expert".
        members: the students' numbers, S of them: the key of their shuffles and augmentations.
        epochs_done: where to begin.
        velocity: the momentum [S,P] then, public order; None at the start.
        after_epoch: called with the number of epochs done, the weights and the momentum [S,P] or
            None, public order.
        after_step: called after every step.

    Returns:
        The trained weights [S,P], public order.
    """
    trainer = _Trainer(student, theta, velocity, examples, recipe)
    if recipe.decay_after is not None and epochs_done > recipe.decay_after:
        trainer.lr.mul_(0.1)
    epochs = range(epochs_done, recipe.epochs)
    drawn: Iterator[Draws] = (
        _draw(examples, recipe, seed, what, members, epoch) for epoch in epochs
    )
    if trainer.theta.is_cuda:
        drawn = draws.ahead(drawn)
    trainer.lr.mul_(recipe.gamma ** sum(epochs_done > passed for passed in recipe.milestones))
    for epoch, of_epoch in zip(epochs, drawn, strict=True):
        if epoch in recipe.milestones:
            trainer.lr.mul_(recipe.gamma)
        for _ in trainer.epoch(of_epoch):
            if after_step is not None:
                after_step()
        if epoch == recipe.decay_after:
            trainer.lr.mul_(0.1)
            trainer.forget()
        if after_epoch is not None:
            after_epoch(epoch + 1, *trainer.public())
    return trainer.public()[0]


class _Trainer:
    """S students' weights and momenta in places that stay, and their steps by the recipe."""

    def __init__(
        self,
        student: Network,
        theta: Tensor,
        velocity: Tensor | None,
        examples: Examples,
        recipe: Recipe,
    ) -> None:
        """Begin with weights and momenta in the public order."""
        self.student, self.examples, self.recipe = student, examples, recipe
        self.theta = empty_rows(theta).copy_(student.pack(theta))
        self.direction, self.velocity = empty_rows(theta), empty_rows(theta).zero_()
        self.moves = velocity is not None  # whether there is a momentum
        if velocity is not None:
            self.velocity.copy_(student.pack(velocity))
        self.lr = torch.as_tensor(recipe.lr, dtype=theta.dtype, device=theta.device).clone()
        # other augmentations may bring constants to a GPU at every call, which no graph records
        ours = recipe.augment is None or isinstance(recipe.augment, DSA)
        self.graph = can_capture(recipe.graph and ours, student, recipe.augment is not None, theta)
        self._places: Latest[_Places] = Latest(4)  # a full batch's, and remainders

    def epoch(self, drawn: Draws) -> Iterator[None]:
        """Take the steps of these draws."""
        placed = PlacedDraws(drawn, self.theta.device).draws
        for t, rows in enumerate(placed.indices):
            step = placed._replace(
                indices=[rows],
                parameters=placed.parameters and [placed.parameters[t]],
                drawn=placed.drawn and [placed.drawn[t]],
                mixes=placed.mixes and [placed.mixes[t]],
            )
            self._step(step, self._places.get(step.shapes, partial(_Places, step, self)))
            yield

    def forget(self) -> None:
        """Begin the momentum anew: from zero, the first gradient becomes it."""
        self.velocity.zero_()
        self.moves = False

    def public(self) -> tuple[Tensor, Tensor | None]:
        """Copies of the weights and, where there is one, the momentum [S,P], public order."""
        theta = self.student.unpack(self.theta).clone()
        return theta, self.student.unpack(self.velocity).clone() if self.moves else None

    def _step(self, drawn: Draws, places: _Places) -> None:
        places.draws.put(drawn)
        places.step(partial(self._run, places.draws.draws))
        self.moves = bool(self.recipe.momentum)

    def _run(self, drawn: Draws) -> None:
        """A step of SGD, in place."""
        recipe, theta, velocity = self.recipe, self.theta, self.velocity
        x, y = self.examples.pick(drawn.indices[0])
        parametrisation = self.examples.parametrisation
        x = parametrisation.sample(x, None if drawn.drawn is None else drawn.drawn[0])
        y = parametrisation.labels(y)
        if recipe.augment is not None and drawn.parameters is not None:
            x = recipe.augment.apply(x, drawn.parameters[0])
        if recipe.cutmix is not None and drawn.mixes is not None:
            x, y = recipe.cutmix.apply(x, y, drawn.mixes[0])
        direction = _direction(self.student, theta, x, y, recipe.sharpness, self.direction)
        if recipe.momentum or recipe.weight_decay:
            rates = self.lr, recipe.momentum, recipe.weight_decay
            ops.sgd_momentum(theta, direction, velocity, *rates, into=[theta, velocity])
        else:
            ops.sgd_update(theta, direction, self.lr, into=[theta])


class _Places:
    """Where the draws of steps on batches of one size are put, and what is recorded of them."""

    def __init__(self, like: Draws, trainer: _Trainer) -> None:
        """Make room for a step's draws."""
        self.draws = PlacedDraws(like, trainer.theta.device)
        self.step: Captured[None] = Captured(trainer.graph)


def accuracy(student: Network, theta: Tensor, images: Images, labels: Tensor) -> Tensor:
    """Top-1 accuracy [S] of weights [S,P] (public order) on images [n,C,H,W], labels int64 [n]."""
    packed = student.pack(theta)
    right = torch.zeros(len(theta), dtype=torch.int64, device=labels.device)
    at_once = len(packed) if packed.is_cuda else 1  # so many fill a GPU, and a CPU's caches
    for x, y in zip(images.split(_TEST_BATCH), labels.split(_TEST_BATCH), strict=True):
        for some, counts in zip(packed.split(at_once), right.split(at_once), strict=True):
            predicted = student.logits(some, x.expand(len(some), *x.shape)).argmax(-1)
            counts += (predicted == y).sum(-1)
    return right.cpu().double() / len(labels)


def students_at_once(batch: int, image_shape: tuple[int, ...]) -> int:
    """How many students to train side by side: as many as keep a step's planes in cache.

    Small steps cost overhead, which is shared; large ones cost arithmetic, which is not.
    """
    return max(1, _PLANES // (batch * image_shape[-2] * image_shape[-1]))


_TEST_BATCH = 128
_PLANES = 2**16  # pixels of one channel, over the images of a step


def _direction(
    student: Network,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    sharpness: Sharpness | None,
    into: Tensor,
) -> Tensor:
    """Where a step leads [S,P]: the gradient, or GSAM's direction from two of them."""
    _, g = student.gradient(theta, x, y, into=into)
    if sharpness is None:
        return g
    uphill = ops.gsam_perturb(theta, g, sharpness.rho, sharpness.adaptive)
    _, there = student.gradient(uphill, x, y)
    return ops.gsam_combine(g, there, sharpness.alpha)


def _draw(
    examples: Examples,
    recipe: Recipe,
    seed: int,
    what: str,
    members: Sequence[int],
    epoch: int,
) -> Draws:
    """An epoch's batches and their augmentation, a function of the key of each member."""
    shuffles = [draws.stream(seed, f"{what} shuffle", m, epoch) for m in members]
    schedule = recipe.schedule
    seen = torch.arange(examples.count) if schedule is None else schedule.rows(epoch)
    orders = torch.stack([seen[torch.from_numpy(r.permutation(len(seen)))] for r in shuffles])
    rows = list(orders.split(recipe.batch_size, dim=1))
    parametrisation, shape = examples.parametrisation, examples.image_shape
    streams = [draws.stream(seed, f"{what} places", m, epoch) for m in members]
    places = [[parametrisation.draw(rng, r.shape[1], shape) for r in rows] for rng in streams]
    drawn = Draws(rows, None, drawn=side_by_side(places))
    counts = [parametrisation.count(batch.shape[1]) for batch in rows]
    if recipe.cutmix is not None:
        streams = [draws.stream(seed, f"{what} cutmix", m, epoch) for m in members]
        mixes = [[recipe.cutmix.draw(rng, count, shape) for count in counts] for rng in streams]
        drawn = drawn._replace(mixes=side_by_side(mixes))
    if recipe.augment is None:
        return drawn
    streams = [draws.stream(seed, f"{what} dsa", m, epoch) for m in members]
    parameters = [
        DSA.stack([recipe.augment.draw(rng, count, shape) for rng in streams]) for count in counts
    ]
    return drawn._replace(parameters=parameters)
