"""A distillation under way: outer iterations, evaluations, and what is kept of them."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastmtt import evaluation, synthetic
from fastmtt.augment import DSA
from fastmtt.batches import Plan
from fastmtt.choices import Choices, make_choices
from fastmtt.data import DataSet
from fastmtt.environment import peak_memory_mb
from fastmtt.errors import FastmttError
from fastmtt.experts.published import PublishedBuffer
from fastmtt.experts.store import TrajectoryStore
from fastmtt.experts.trainer import identity, versions
from fastmtt.interrupts import deferred
from fastmtt.matching import TrajectoryMatcher
from fastmtt.methods import METHODS
from fastmtt.options import DistillConfig
from fastmtt.pace import Pace
from fastmtt.progress import Meter
from fastmtt.run import RunFolder, State
from fastmtt.student.zoo import make_network
from fastmtt.sweeps import Gradient

OUTER_MOMENTUM = 0.5  # of the published optimisers of images and learning rate


@dataclass
class Choice:
    """The best set so far by one criterion.

    Attributes:
        criterion: accuracy [%] by it.
        test: test accuracy [%] of that set.
        iteration: the iteration it was evaluated before; None: none was yet.
    """

    criterion: float | None = None
    test: float | None = None
    iteration: int | None = None

    def improves(self, criterion: float) -> bool:
        """Whether a set that reaches ``criterion`` is better."""
        return self.criterion is None or criterion > self.criterion


class Distillation:
    """One run: the synthetic set, its optimisers, the matcher, and what was best so far."""

    def __init__(self, config: DistillConfig, dataset: DataSet) -> None:
        """Set everything up as it is before iteration 0, but for the experts."""
        self.config, self.dataset = config, dataset
        self.choices: Choices = make_choices(config.rng, config.seed)
        self.set = synthetic.start(
            dataset, config.ipc, config.pix_init, config.lr_teacher, self.choices
        )
        self.set.images.requires_grad_()
        self.set.lr.requires_grad_()
        self.optimisers = {
            "images": torch.optim.SGD([self.set.images], config.lr_img, OUTER_MOMENTUM),
            "lr": torch.optim.SGD([self.set.lr], config.lr_lr, OUTER_MOMENTUM),
        }
        augment = DSA(config.dsa_strategy) if config.dsa else None
        self.plan = Plan(
            config.syn_steps,
            config.segments,
            len(self.set.images),
            config.batch_syn,
            dataset.image_shape,
            None if config.no_aug else augment,
        )
        self.matcher = TrajectoryMatcher(
            make_network(
                config.model, image_shape=dataset.image_shape, classes=len(dataset.classes)
            ),
            steps=config.syn_steps,
            batch_size=config.batch_syn,
            gradient=_gradient(config),
            augment=self.plan.augment,
            memory=config.memory,
        )
        self.protocol = evaluation.Protocol(
            config.model,
            config.num_eval,
            config.epoch_eval_train,
            config.batch_train,
            augment,
            config.seed,
        )
        self.meta = {
            **identity(dataset, config.model),
            "classes": list(dataset.classes),
            "versions": versions(),
        }
        self.iteration, self.evaluated = 0, False
        self.best, self.held_out, self.last = Choice(), Choice(), Choice()
        self.seconds = {"matching": 0.0, "evaluation": 0.0}

    def distil(self, store: TrajectoryStore | PublishedBuffer, run: RunFolder) -> None:
        """Iterations up to ``Iteration`` inclusive, evaluated before each ``eval_it``-th.

        The published programs evaluate before the last update and never after it; here it is the
        other way round. Interrupted, the run leaves a checkpoint that loses nothing.
        """
        config = self.config
        self.store, self.run, self.pace = store, run, Pace()
        self.experts = store.indices()[: config.max_experts or config.num_experts]
        try:
            with Meter(config.Iteration + 1 - self.iteration, "distil") as meter:
                while self.iteration <= config.Iteration:
                    if self._evaluates() and not self.evaluated:
                        self.evaluate()
                    with deferred():
                        loss = self.step()
                    meter.step(f"loss {loss:.4f}, lr {self.lr:.5f}")
                    if self.pace.due:
                        self._checkpoint()
            if not self.evaluated:
                self.evaluate()
        except KeyboardInterrupt:
            with deferred():
                self._checkpoint()
            raise
        self._keep("last", self.set.detached(), "last iterate")

    @property
    def lr(self) -> float:
        """The student's learning rate."""
        return float(self.set.lr.detach())

    def step(self) -> float:
        """One outer iteration: match ``segments`` segments, update images and learning rate."""
        begin = time.perf_counter()
        start, target = self._segments()
        draws = self.choices.batches(self.iteration, self.plan)
        matched = self.matcher(
            start, target, self.set.images, self.set.labels, self.set.lr, draws=draws
        )
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        matched.backward()
        for optimiser in self.optimisers.values():
            optimiser.step()
        loss = float(matched.detach())
        self._check(loss)
        seconds = time.perf_counter() - begin
        self.seconds["matching"] += seconds
        self.run.log_metrics(
            {"iteration": self.iteration, "loss": loss, "lr": self.lr, "seconds": seconds}
        )
        self.iteration, self.evaluated = self.iteration + 1, False
        return loss

    def evaluate(self) -> None:
        """Accuracy of fresh networks; keeps the set, its picture and a checkpoint."""
        begin = time.perf_counter()
        scores = evaluation.evaluate_distilled(
            self.dataset, self.set, self.protocol, desc=f"evaluate at {self.iteration}"
        )
        with deferred():
            seconds = time.perf_counter() - begin
            self.seconds["evaluation"] += seconds
            self._record(scores, seconds)
            self.evaluated = True
            self._checkpoint()

    def state(self) -> State:
        """What a run resumed from here depends on: tensors, and JSON values."""
        tensors = {"images": self.set.images, "labels": self.set.labels, "lr": self.set.lr}
        for name, optimiser in self.optimisers.items():
            for state in optimiser.state.values():
                tensors[f"momentum_{name}"] = state["momentum_buffer"]
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}, {
            **self.meta,
            "iteration": self.iteration,
            "evaluated": self.evaluated,
            "choices": self.choices.state(),
            "best": asdict(self.best),
            "held_out": asdict(self.held_out),
            "last": asdict(self.last),
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            FastmttError: it is of another set, or lacks something.
        """
        tensors, values = state
        for key in ("network", "dataset", "space"):
            if values.get(key) != self.meta[key]:
                raise FastmttError(
                    f"the checkpoint is of {key} {values.get(key)}, the run of {self.meta[key]}; "
                    "put the run's own checkpoint back"
                )
        try:
            with torch.no_grad():
                for name in ("images", "labels", "lr"):
                    mine = getattr(self.set, name)
                    if mine.shape != tensors[name].shape or mine.dtype != tensors[name].dtype:
                        raise ValueError(f"{name} {tensors[name].dtype} {[*tensors[name].shape]}")
                    mine.copy_(tensors[name])
            for name, optimiser in self.optimisers.items():
                if f"momentum_{name}" in tensors:
                    _set_momentum(optimiser, tensors[f"momentum_{name}"])
            self.choices.restore(values["choices"])
            self.best, self.held_out, self.last = (
                Choice(**values[name]) for name in ("best", "held_out", "last")
            )
            self.seconds = {name: float(values["seconds"][name]) for name in self.seconds}
            self.iteration, self.evaluated = int(values["iteration"]), bool(values["evaluated"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FastmttError(
                f"the checkpoint does not fit this run ({error}); remove the run's folder to "
                "begin anew"
            ) from None

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says of a finished run."""
        return {
            "iterations": self.iteration,
            "seconds": self.seconds,
            "peak_memory_mb": peak_memory_mb(),
            "accuracy_last": self.last.test,
            "accuracy_best": self.best.test,
            "iteration_best": self.best.iteration,
            "accuracy_held_out_choice": self.held_out.test,
            "iteration_held_out_choice": self.held_out.iteration,
        }

    def _evaluates(self) -> bool:
        config = self.config
        if self.iteration == 0:
            return not config.skip_first_eva
        return self.iteration % config.eval_it == 0 and self.iteration < config.Iteration

    def _segments(self) -> tuple[Tensor, Tensor]:
        config = self.config
        segments = self.choices.segments(
            self.iteration,
            config.segments,
            self.experts,
            config.min_start_epoch,
            config.max_start_epoch,
        )
        pairs = [
            self.store.segment(expert, epoch, epoch + config.expert_epochs)
            for expert, epoch in segments
        ]
        device = self.set.images.device
        start, target = (torch.stack(rows).to(device) for rows in zip(*pairs, strict=True))
        return start, target

    def _record(self, scores: evaluation.Scores, seconds: float) -> None:
        """Tell of an evaluation; keep the set's picture, and the set where it is the best."""
        mean, std = _percent(scores.test)
        record: dict[str, Any] = {
            "iteration": self.iteration,
            "accuracy": mean,
            "accuracy_std": std,
            "networks": len(scores.test),
            "lr": self.lr,
            "seconds_evaluation": seconds,
        }
        told = f"iteration {self.iteration}: accuracy {mean:.2f} ± {std:.2f} %"
        kept = self.set.detached()
        picture = f"images_{self.iteration:06d}.png"
        self.run.save_image_grid(picture, self._pixels(kept))
        self.run.logger.picture(self.iteration, "distilled", self.run.path / picture)
        self.last = Choice(mean, mean, self.iteration)
        if self.best.improves(mean):
            self.best = self.last
            self._keep("best", kept, "test accuracy")
            for name, tensor in asdict(kept).items():
                self.run.save_pt(f"{name}_best.pt", tensor)
        if scores.held_out is not None:
            selecting, spread = _percent(scores.held_out)
            record |= {"held_out_accuracy": selecting, "held_out_accuracy_std": spread}
            told += f", on held-out images {selecting:.2f} ± {spread:.2f} %"
            if self.held_out.improves(selecting):
                self.held_out = Choice(selecting, mean, self.iteration)
                self._keep("held_out", kept, "held-out accuracy")
        self.run.log_metrics(record)
        self.run.log(
            f"{told}, of {len(scores.test)} networks; best {self.best.test:.2f} %, lr {self.lr:.5f}"
        )

    def _keep(self, name: str, kept: synthetic.Synthetic, chosen_by: str) -> None:
        meta = {**self.meta, "iteration": self.iteration, "chosen_by": chosen_by}
        kept.save(self.run.path / f"distilled_{name}.safetensors", meta)
        self.run.save_image_grid(f"images_{name}.png", self._pixels(kept))

    def _pixels(self, kept: synthetic.Synthetic) -> Tensor:
        return self.dataset.space.to_pixels(kept.images)

    def _checkpoint(self) -> None:
        with self.pace.saving():
            self.run.save_checkpoint(self.state())

    def _check(self, loss: float) -> None:
        finite = math.isfinite(loss) and bool(self.set.images.detach().isfinite().all())
        if not finite or not self.lr > 0:
            raise FastmttError(
                f"iteration {self.iteration} went astray: loss {loss:.4g}, learning rate "
                f"{self.lr:.4g}, wanted a finite loss and a positive rate; lower lr_img or lr_lr "
                f"(the best set so far is in {self.run.path})"
            )


def _gradient(config: DistillConfig) -> Gradient:
    if config.gradient is None:
        return METHODS[config.method].gradient
    return config.gradient if isinstance(config.gradient, str) else ("truncated", config.gradient)


def _percent(accuracies: Tensor) -> tuple[float, float]:
    return 100 * float(accuracies.mean()), 100 * float(accuracies.std(correction=0))


def _set_momentum(optimiser: torch.optim.Optimizer, momentum: Tensor) -> None:
    (tensor,) = optimiser.param_groups[0]["params"]
    if momentum.shape != tensor.shape:
        raise ValueError(f"momentum {[*momentum.shape]} of a tensor {[*tensor.shape]}")
    optimiser.state[tensor]["momentum_buffer"] = momentum.to(tensor)
