"""Trajectory matching as an objective: its matcher, its choices, what is learned and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmtt.augment import DSA
from fastmtt.batches import Draws, Plan
from fastmtt.capture import Captured, sent
from fastmtt.choices import Choices
from fastmtt.data.memory import available
from fastmtt.experts.published import Experts
from fastmtt.iteration import Keep
from fastmtt.keep import but_first, but_smallest
from fastmtt.labels import logits, of_views
from fastmtt.matching import TrajectoryMatcher
from fastmtt.objective import Setting, Told
from fastmtt.options import DistillConfig
from fastmtt.run import State
from fastmtt.smoothing import MovingAverage
from fastmtt.stages import first_snapshots
from fastmtt.sweeps import Gradient
from fastmtt.synthetic import Synthetic

LR_MOMENTUM = 0.5  # of the published optimiser of the learning rate
# A CPU's tapes, unless memory is given: all of 80 steps of ten images a class, 2.6 GB. What is free
# is the machine's, and a job's own limit may be less: hence at most this.
_MOST_KEPT, _OF_FREE = 3 * 2**30, 1 / 8


class TrajectoryObjective:
    """Segments of expert trajectories, matched and descended.

    Attributes:
        plan: what an iteration's batches look like.
        gradient: as the matcher takes it.
        memory: bytes that its tapes may take.
        ahead: whether an iteration is drawn while the one before is computed.
    """

    rates = "lr_img or lr_lr"

    def __init__(self, setting: Setting) -> None:
        """Make the matcher."""
        self.setting = setting
        config, stage = setting.config, setting.stage
        augments = config.dsa and not config.no_aug
        self.plan = Plan(
            config.syn_steps,
            config.segments,
            setting.count,
            config.batch_syn or setting.count - stage.frozen,
            setting.dataset.image_shape,
            DSA(config.dsa_strategy) if augments else None,
            setting.parametrisation,
        )
        self.gradient = _gradient(config)
        self.memory = tape_memory(config.memory, setting.dataset.train_images.device)
        self.matcher = make_matcher(
            config, setting.network, setting.student.size, self.plan, self.memory
        )
        self._drawn: Drawn | None = None

    def learn(self, made: Synthetic) -> None:
        """Make what is learned of the set leaves of the graph, with their optimisers."""
        config = self.setting.config
        self.set = made
        learned = {
            "images": (made.images, config.lr_img, config.mom_img),
            "lr": (made.lr, config.lr_lr, LR_MOMENTUM),
        }
        if config.labels == "soft" and made.labels.is_floating_point():
            learned["labels"] = (made.labels, config.lr_y, config.Momentum_y)
        self.optimisers = {
            name: torch.optim.SGD([tensor.requires_grad_()], rate, momentum)
            for name, (tensor, rate, momentum) in learned.items()
        }
        self._learned: list[Any] = [tensor for tensor, _, _ in learned.values()]
        for tensor in self._learned:
            tensor.grad = torch.empty_like(tensor)  # where it stays
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(made.images, decay)
        self.ahead = made.images.is_cuda
        self._descend: Captured[None] = Captured(made.images.is_cuda and not config.no_graph)

    def open(self, store: Experts | None, experts: list[int]) -> None:
        """See :class:`fastmtt.objective.Objective`."""
        assert store is not None
        self.store, self.experts = store, experts

    def step(self, iteration: int) -> Told:
        """Match ``segments`` segments, update what is learned."""
        config, made = self.setting.config, self.set
        drawn = self._draw(iteration)
        if config.labels == "teacher":
            views = made.parametrisation.views(made.images.detach())
            found = logits(self.setting.student, drawn.target[0], views)
            made.labels = of_views(found, made.parametrisation)
        matched = self.matcher(
            drawn.start, drawn.target, made.images, made.targets, made.lr, draws=drawn.draws
        )
        threshold = config.threshold
        passes = threshold is None or float(matched.detach()) <= threshold  # not so of NaN
        if passes:
            self._update(matched)
        if self.ahead:
            self._draw(iteration + 1)
        return self._read(matched.detach(), passes)

    def state(self, iteration: int) -> State:
        """See :class:`fastmtt.objective.Objective`."""
        tensors = {
            f"momentum_{name}": state["momentum_buffer"]
            for name, optimiser in self.optimisers.items()
            for state in optimiser.state.values()
        }
        if self.average is not None:
            tensors["average"] = self.average.shadow
        ahead = self._drawn is not None and self._drawn.iteration == iteration
        before = self._drawn.before if self._drawn and ahead else self.setting.choices.state()
        return tensors, {"choices": before}

    def restore(self, state: State) -> None:
        """See :class:`fastmtt.objective.Objective`."""
        tensors, values = state
        for name, optimiser in self.optimisers.items():
            if f"momentum_{name}" in tensors:
                _set_momentum(optimiser, tensors[f"momentum_{name}"])
        if self.average is not None:
            self.average.shadow = tensors["average"]
        self.setting.choices.restore(values["choices"])
        self._drawn = None

    def evaluated_from(self, networks: int) -> Tensor | None:
        """A later stage's experts' beginning: where training on earlier images ended."""
        if not self.setting.stage.number:
            return None
        return first_snapshots(self.store, self.experts, networks)

    def _update(self, matched: Tensor) -> None:
        """Descend the loss."""
        found = torch.autograd.grad(matched, self._learned)
        for tensor, g in zip(self._learned, found, strict=True):
            tensor.grad.copy_(g)
        self._descend(self._descended)

    def _descended(self) -> None:
        """A step of every optimiser by the gradients that are there, and of the average."""
        if self.setting.config.legacy_scale and self.set.images.grad is not None:
            self.set.images.grad.mul_(0.5)
        for learned in (self.set.images, self.set.labels):
            if learned.grad is not None:
                learned.grad[: self.setting.stage.frozen] = 0
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.average is not None:
            self.average.update(self.set.images)

    def _draw(self, iteration: int) -> Drawn:
        """An iteration's choices, drawn once."""
        if self._drawn is None or self._drawn.iteration != iteration:
            self._drawn = draw_iteration(
                self.setting.config,
                self.setting.choices,
                self.plan,
                self.store,
                self.experts,
                iteration,
                self.set.images,
            )
        return self._drawn

    def _read(self, matched: Tensor, passes: bool) -> Told:
        """The one look at a GPU's values, behind all of the iteration."""
        finite = self.set.images.detach().isfinite().all().to(matched.dtype)
        seen = torch.stack([matched, self.set.lr.detach(), finite])
        loss, lr, finite_images = seen.tolist()
        if not math.isfinite(loss):
            self.matcher.check_distance()
        return Told(loss, lr, bool(finite_images), passes)


def tape_memory(asked: int | None, device: torch.device) -> int:
    """Bytes that a match may keep of its steps: what is asked for, else what a CPU has to spare.

    On a GPU nothing unless asked: its memory is what a run most often lacks.
    """
    if asked is not None:
        return asked
    return min(_MOST_KEPT, int(available() * _OF_FREE)) if device.type == "cpu" else 0


def make_matcher(
    config: DistillConfig, network: nn.Module, size: int, plan: Plan, memory: int
) -> TrajectoryMatcher:
    """The matcher of a configuration.

    Args:
        config: how to match.
        network: whose trajectories.
        size: P, the number of its weights.
        plan: what its batches look like.
        memory: bytes that its tapes may take.
    """
    return TrajectoryMatcher(
        network,
        steps=config.syn_steps,
        batch_size=plan.batch_size,
        gradient=_gradient(config),
        augment=plan.augment,
        keep=_keep(config, size),
        parametrisation=plan.parametrisation,
        precision=config.precision,
        memory=memory,
        graph=not config.no_graph,
    )


class Drawn(NamedTuple):
    """An iteration's choices, and the state of what chose before it did."""

    iteration: int
    before: dict[str, Any]
    start: Tensor
    target: Tensor
    draws: Draws


def draw_iteration(
    config: DistillConfig,
    choices: Choices,
    plan: Plan,
    store: Experts,
    experts: Sequence[int],
    iteration: int,
    like: Tensor,
) -> Drawn:
    """Choose an iteration's segments and batches; start and target come to where ``like`` is."""
    before = choices.state()
    segments = choices.segments(
        iteration, config.segments, experts, *config.start_epochs(iteration)
    )
    pairs = [
        store.segment(expert, epoch, epoch + config.expert_epochs) for expert, epoch in segments
    ]
    start, target = (sent(torch.stack(rows), like) for rows in zip(*pairs, strict=True))
    return Drawn(iteration, before, start, target, choices.batches(iteration, plan))


def _gradient(config: DistillConfig) -> Gradient:
    return config.gradient if isinstance(config.gradient, str) else ("truncated", config.gradient)


def _keep(config: DistillConfig, size: int) -> Keep | None:
    if config.keep == "loss" and config.loss_ratio:
        return but_smallest(config.loss_ratio)
    if config.keep == "depth" and config.depth_ratio:
        return but_first(config.depth_ratio, size)
    return None


def _set_momentum(optimiser: torch.optim.Optimizer, momentum: Tensor) -> None:
    (tensor,) = optimiser.param_groups[0]["params"]
    if momentum.shape != tensor.shape:
        raise ValueError(f"a momentum is {[*momentum.shape]}")
    optimiser.state[tensor]["momentum_buffer"] = momentum
