"""What a distillation descends: its configuration's matcher, and an iteration's choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmtt.batches import Draws, Plan
from fastmtt.capture import sent
from fastmtt.choices import Choices
from fastmtt.experts.published import Experts
from fastmtt.iteration import Keep
from fastmtt.keep import but_first, but_smallest
from fastmtt.matching import TrajectoryMatcher
from fastmtt.options import DistillConfig
from fastmtt.sweeps import Gradient


def make_matcher(
    config: DistillConfig, network: nn.Module, size: int, plan: Plan
) -> TrajectoryMatcher:
    """The matcher of a configuration.

    Args:
        config: how to match.
        network: whose trajectories.
        size: P, the number of its weights.
        plan: what its batches look like.
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
        memory=config.memory,
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
