"""A distillation under way: outer iterations, evaluations, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastmtt import evaluation, synthetic
from fastmtt.augment import DSA
from fastmtt.batches import Plan
from fastmtt.capture import Captured
from fastmtt.choices import Choices, make_choices
from fastmtt.data import DataSet
from fastmtt.environment import peak_memory_mb
from fastmtt.errors import FastmttError
from fastmtt.experts.published import Experts
from fastmtt.experts.trainer import identity, versions
from fastmtt.interrupts import deferred
from fastmtt.labels import Labeller, correct_rows, logits, of_views, soft_labels
from fastmtt.objective import Drawn, draw_iteration, make_matcher
from fastmtt.options import DistillConfig
from fastmtt.pace import Pace
from fastmtt.progress import Meter
from fastmtt.protocol import make_protocol
from fastmtt.run import RunFolder, State
from fastmtt.selection import Selection
from fastmtt.smoothing import MovingAverage
from fastmtt.stages import FIRST, Stage, first_snapshots
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network

OUTER_MOMENTUM = 0.5  # of the published optimisers of images and learning rate


class Distillation:
    """One run: the synthetic set, its optimisers, the matcher, and what was best so far."""

    def __init__(self, config: DistillConfig, dataset: DataSet, stage: Stage = FIRST) -> None:
        """Set everything up as it is before a stage's iteration 0, but for what experts give."""
        self.config, self.dataset, self.stage = config, dataset, stage
        self.choices: Choices = make_choices(config.rng, stage.seed(config.seed))
        parametrisation = config.parametrisation
        self.set = synthetic.start(
            dataset, config.ipc, config.pix_init, config.lr_teacher, self.choices, parametrisation
        )
        self.network = make_network(
            config.model, image_shape=dataset.image_shape, classes=len(dataset.classes)
        )
        augment = DSA(config.dsa_strategy) if config.dsa else None
        self.plan = Plan(
            config.syn_steps,
            config.segments,
            stage.frozen + len(self.set.images),
            config.batch_syn or len(self.set.images),
            dataset.image_shape,
            None if config.no_aug else augment,
            parametrisation,
        )
        self.student = make_student(self.network, dataset.image_shape, precision=config.precision)
        self.matcher = make_matcher(config, self.network, self.student.size, self.plan)
        self.protocol = make_protocol(
            config.protocol,
            config,
            dataset,
            networks=config.num_eval,
            epochs=config.epoch_eval_train,
        )
        self._learn()
        self.first_iteration = stage.number * (config.Iteration + 1)
        self.iteration, self.evaluated = 0, False
        self.ahead = self.set.images.is_cuda  # draw an iteration while the last one is computed
        self._drawn: Drawn | None = None
        meta = {
            **identity(dataset, config.model),
            "classes": list(dataset.classes),
            "versions": versions(),
        }
        self.meta = meta
        self.selections = {"": Selection(dataset.space, meta)}
        if self.average is not None:
            self.selections["ema"] = Selection(dataset.space, meta, "ema")
        self.seconds = {"matching": 0.0, "evaluation": 0.0}

    def begin(self, labeller: Labeller | None = None) -> None:
        """Start images and labels from experts where these are given, behind earlier stages'."""
        if labeller is not None:
            self._ask(labeller)
        self.set = self.stage.joined(self.set)
        self._learn()

    def _ask(self, labeller: Labeller) -> None:
        config, made = self.config, self.set
        if config.pix_init == "samples_predicted_correctly":
            ipc = config.ipc * made.parametrisation.cells
            rows = correct_rows(self.dataset, ipc, self.choices, labeller)
            rows = rows.to(made.images.device)
            made.images = synthetic.assembled(self.dataset, rows, made.parametrisation)
        if config.labels == "soft":
            if config.pix_init == "real":  # the published program asks one expert only, then
                labeller = labeller.first()
            made.labels = soft_labels(
                made.images.detach(), made.labels, labeller, made.parametrisation
            )

    def distil(self, store: Experts, run: RunFolder) -> None:
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
                        self.step()
                    meter.step(self.note)
                    if self.pace.due:
                        self._checkpoint()
            if not self.evaluated:
                self.evaluate()
        except KeyboardInterrupt:
            with deferred():
                self._checkpoint()
            raise
        for line, selection in self.selections.items():
            selection.keep(run, self.iteration_of_run, "last", self._set_of(line), "last iterate")

    @property
    def iteration_of_run(self) -> int:
        """The iteration to come, counted through all stages."""
        return self.first_iteration + self.iteration

    @property
    def lr(self) -> float:
        """The student's learning rate."""
        return float(self.set.lr.detach())

    def step(self) -> float:
        """One outer iteration: match ``segments`` segments, update what is learned."""
        begin = time.perf_counter()
        drawn = self._draw(self.iteration)
        if self.config.labels == "teacher":
            views = self.set.parametrisation.views(self.set.images.detach())
            found = logits(self.student, drawn.target[0], views)
            self.set.labels = of_views(found, self.set.parametrisation)
        matched = self.matcher(
            drawn.start,
            drawn.target,
            self.set.images,
            self.set.targets,
            self.set.lr,
            draws=drawn.draws,
        )
        threshold = self.config.threshold
        passes = threshold is None or float(matched.detach()) <= threshold  # not so of NaN
        if passes:
            self._update(matched)
        if self.ahead:
            self._draw(self.iteration + 1)
        loss, lr = self._read(matched, passes)
        seconds = time.perf_counter() - begin
        self.seconds["matching"] += seconds
        record = {"iteration": self.iteration_of_run, "loss": loss, "lr": lr, "seconds": seconds}
        self.run.log_metrics(record if passes else {**record, "left_out": True})
        self.note = f"loss {loss:.4f}, lr {lr:.5f}"
        self.iteration, self.evaluated = self.iteration + 1, False
        return loss

    def evaluate(self) -> None:
        """Accuracy of fresh networks; keeps the set, its picture and a checkpoint."""
        begin = time.perf_counter()
        scores = {line: self._scores(line) for line in self.selections}
        with deferred():
            seconds = time.perf_counter() - begin
            self.seconds["evaluation"] += seconds
            number = self.iteration_of_run
            record: dict[str, Any] = {"iteration": number}
            for line, selection in self.selections.items():
                told = selection.take(self.run, number, self._set_of(line), scores[line])
                record |= selection.figures(scores[line])
                name = "accuracy of the average" if line else "accuracy"
                self.run.log(
                    f"iteration {number}: {name} {told} ({self.protocol.networks} "
                    f"networks, lr {self.lr:.5f})"
                )
            record |= {"networks": self.protocol.networks, "lr": self.lr}
            self.run.log_metrics({**record, "seconds_evaluation": seconds})
            self.evaluated = True
            self._checkpoint()

    def state(self) -> State:
        """What a run resumed from here depends on: tensors, and JSON values."""
        tensors = {"images": self.set.images, "labels": self.set.labels, "lr": self.set.lr}
        for name, optimiser in self.optimisers.items():
            for state in optimiser.state.values():
                tensors[f"momentum_{name}"] = state["momentum_buffer"]
        if self.average is not None:
            tensors["average"] = self.average.shadow
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}, {
            **self.meta,
            "stage": self.stage.number,
            "iteration": self.iteration,
            "evaluated": self.evaluated,
            "choices": self._undrawn(),
            "selections": {line: kept.state() for line, kept in self.selections.items()},
            "seconds": self.seconds,
        }

    def restore(self, state: State) -> None:
        """Go on from what :meth:`state` gave.

        Raises:
            FastmttError: it is of another set, or lacks something.
        """
        tensors, values = state
        device = self.set.images.device
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        here = {**self.meta, "stage": self.stage.number}
        for key in ("network", "dataset", "space", "stage"):
            if values.get(key, 0 if key == "stage" else None) != here[key]:
                raise FastmttError(
                    f"the checkpoint is of {key} {values.get(key)}, the run of {here[key]}; "
                    "put the run's own checkpoint back"
                )
        try:
            self._check_shapes(tensors)
            kept = {name: tensors[name] for name in self.set.tensors()}
            self.set = self.set.with_tensors(**kept)
            self._learn()
            for name, optimiser in self.optimisers.items():
                if f"momentum_{name}" in tensors:
                    _set_momentum(optimiser, tensors[f"momentum_{name}"])
            if self.average is not None:
                self.average.shadow = tensors["average"]
            self.choices.restore(values["choices"])
            self._drawn = None
            for line, selection in self.selections.items():
                selection.restore(values["selections"][line])
            self.seconds = {name: float(values["seconds"][name]) for name in self.seconds}
            self.iteration, self.evaluated = int(values["iteration"]), bool(values["evaluated"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise FastmttError(
                f"the checkpoint does not fit this run ({error}); remove the run's folder to "
                "begin anew"
            ) from None

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` says of a finished run."""
        found: dict[str, Any] = {
            "iterations": self.iteration_of_run,
            "seconds": self.seconds,
            "peak_memory_mb": peak_memory_mb(),
        }
        for selection in self.selections.values():
            found |= selection.summary()
        return found

    def _learn(self) -> None:
        """Make what is learned of the set leaves of the graph, with their optimisers."""
        config = self.config
        learned = {
            "images": (self.set.images, config.lr_img, OUTER_MOMENTUM),
            "lr": (self.set.lr, config.lr_lr, OUTER_MOMENTUM),
        }
        if config.labels == "soft" and self.set.labels.is_floating_point():
            learned["labels"] = (self.set.labels, config.lr_y, config.Momentum_y)
        self.optimisers = {
            name: torch.optim.SGD([tensor.requires_grad_()], rate, momentum)
            for name, (tensor, rate, momentum) in learned.items()
        }
        self._learned: list[Any] = [tensor for tensor, _, _ in learned.values()]
        for tensor in self._learned:
            tensor.grad = torch.empty_like(tensor)  # where it stays
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(self.set.images, decay)
        self._descend: Captured[None] = Captured(self.set.images.is_cuda and not config.no_graph)

    def _update(self, matched: Tensor) -> None:
        """Descend the loss."""
        found = torch.autograd.grad(matched, self._learned)
        for tensor, g in zip(self._learned, found, strict=True):
            tensor.grad.copy_(g)
        self._descend(self._descended)

    def _descended(self) -> None:
        """A step of every optimiser by the gradients that are there, and of the average."""
        if self.config.legacy_scale and self.set.images.grad is not None:
            self.set.images.grad.mul_(0.5)
        for learned in (self.set.images, self.set.labels):
            if learned.grad is not None:
                learned.grad[: self.stage.frozen] = 0
        for optimiser in self.optimisers.values():
            optimiser.step()
        if self.average is not None:
            self.average.update(self.set.images)

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """ValueError where a checkpoint's tensors are not of this run's set."""
        shape = torch.Size([self.plan.n, *self.set.images.shape[1:]])
        soft = tensors["labels"].is_floating_point()
        labels = (shape[0], len(self.dataset.classes)) if soft else shape[:1]
        wanted = {"images": shape, "labels": labels, "lr": (), "average": shape}
        for name in wanted.keys() & tensors.keys():
            if tensors[name].shape != wanted[name]:
                raise ValueError(f"{name} {[*tensors[name].shape]}, wanted {[*wanted[name]]}")

    def _evaluates(self) -> bool:
        config = self.config
        if self.iteration == 0:
            return not config.skip_first_eva
        return self.iteration % config.eval_it == 0 and self.iteration < config.Iteration

    def _draw(self, iteration: int) -> Drawn:
        """An iteration's choices, drawn once."""
        if self._drawn is None or self._drawn.iteration != iteration:
            self._drawn = draw_iteration(
                self.config,
                self.choices,
                self.plan,
                self.store,
                self.experts,
                iteration,
                self.set.images,
            )
        return self._drawn

    def _undrawn(self) -> dict[str, Any]:
        """The state of what chooses as it was before this iteration's choices."""
        drawn = self._drawn
        ahead = drawn is not None and drawn.iteration == self.iteration
        return drawn.before if drawn and ahead else self.choices.state()

    def _set_of(self, line: str) -> synthetic.Synthetic:
        """The learned set, or the one whose images are averaged."""
        kept = self.set.detached()
        if line == "ema" and self.average is not None:
            kept.images = self.average.shadow.clone().cpu()
        return kept

    def _scores(self, line: str) -> evaluation.Scores:
        device = self.set.images.device
        first = self._set_of("").to(device) if line and self._released else None
        return evaluation.evaluate_distilled(
            self.dataset,
            self._set_of(line).to(device),
            self.protocol,
            desc=f"evaluate{' the average' if line else ''} at {self.iteration_of_run}",
            first=first,
            start=self._stage_start,
        )

    @property
    def _stage_start(self) -> Tensor | None:
        """What a later stage's evaluations begin with: where training on earlier images ended."""
        if not self.stage.number:
            return None
        return first_snapshots(self.store, self.experts, self.protocol.networks)

    @property
    def _released(self) -> bool:
        return self.config.ema_eval == "released"

    def _checkpoint(self) -> None:
        with self.pace.saving():
            self.run.save_checkpoint(self.state())

    def _read(self, matched: Tensor, passes: bool) -> tuple[float, float]:
        """Loss and learning rate: the one look at a GPU's values, behind all of the iteration.

        Raises:
            FastmttError: the update has led astray.
        """
        images = self.set.images.detach()
        seen = [matched.detach(), self.set.lr.detach(), images.isfinite().all().to(matched.dtype)]
        loss, lr, finite = torch.stack(seen).tolist()
        if not math.isfinite(loss):
            self.matcher.check_distance()
        if passes and not (math.isfinite(loss) and finite and lr > 0):
            raise FastmttError(
                f"iteration {self.iteration_of_run} went astray: loss {loss:.4g}, learning rate "
                f"{lr:.4g}, wanted a finite loss and a positive rate; lower lr_img or lr_lr "
                f"(the best set so far is in {self.run.path})"
            )
        return loss, lr


def _set_momentum(optimiser: torch.optim.Optimizer, momentum: Tensor) -> None:
    (tensor,) = optimiser.param_groups[0]["params"]
    if momentum.shape != tensor.shape:
        raise ValueError(f"a momentum is {[*momentum.shape]}")
    optimiser.state[tensor]["momentum_buffer"] = momentum
