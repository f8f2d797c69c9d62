"""A distillation under way: outer iterations, evaluations, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from torch import Size, Tensor

from fastmtt import evaluation, synthetic
from fastmtt.choices import Choices, make_choices
from fastmtt.condensation import Condensation
from fastmtt.data import DataSet
from fastmtt.environment import peak_memory_mb
from fastmtt.errors import FastmttError
from fastmtt.experts.published import Experts
from fastmtt.experts.trainer import identity, versions
from fastmtt.interrupts import deferred
from fastmtt.labels import Labeller, correct_rows, soft_labels
from fastmtt.objective import Objective, Setting, stored_as
from fastmtt.options import DistillConfig
from fastmtt.pace import Pace
from fastmtt.progress import Meter
from fastmtt.protocol import make_protocol
from fastmtt.run import RunFolder, State
from fastmtt.selection import Selection
from fastmtt.staged_evaluation import evaluate_stages
from fastmtt.stages import FIRST, Stage
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network
from fastmtt.trajectory_objective import TrajectoryObjective


class Distillation:
    """One stage of a run: the synthetic set, its objective, and what was best so far."""

    def __init__(self, config: DistillConfig, dataset: DataSet, stage: Stage = FIRST) -> None:
        """Set everything up as it is before a stage's iteration 0, but for what experts give."""
        self.config, self.dataset, self.stage = config, dataset, stage
        self.choices: Choices = make_choices(config.rng, stage.seed(config.seed))
        parametrisation = stored_as(config, dataset.space)
        self.set = synthetic.start(
            dataset, config.ipc, config.pix_init, config.lr_teacher, self.choices, parametrisation
        )
        self.network = make_network(
            config.model, image_shape=dataset.image_shape, classes=len(dataset.classes)
        )
        self.student = make_student(self.network, dataset.image_shape, precision=config.precision)
        self.protocol = make_protocol(
            config.protocol,
            config,
            dataset,
            networks=config.num_eval,
            epochs=config.epoch_eval_train,
        )
        self.count = stage.frozen + len(self.set.images)
        setting = Setting(
            config,
            dataset,
            stage,
            self.choices,
            self.network,
            self.student,
            self.count,
            parametrisation,
        )
        matches = config.objective == "matching"
        self.objective: Objective = (
            TrajectoryObjective(setting) if matches else Condensation(setting)
        )
        self.objective.learn(self.set)
        self.first_iteration = stage.number * (config.Iteration + 1)
        self.iteration, self.evaluated = 0, False
        meta = {
            **identity(dataset, config.model),
            "classes": list(dataset.classes),
            "versions": versions(),
        }
        self.meta = meta
        self.selections = {"": Selection(dataset.space, meta)}
        if config.ema_decay is not None:
            self.selections["ema"] = Selection(dataset.space, meta, "ema")
        self.seconds = {"matching": 0.0, "evaluation": 0.0}

    def begin(self, labeller: Labeller | None = None) -> None:
        """Start images and labels from experts where these are given, behind earlier stages'."""
        if labeller is not None:
            self._ask(labeller)
        self.set = self.stage.joined(self.set)
        self.objective.learn(self.set)

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

    def open(self, store: Experts | None, run: RunFolder) -> None:
        """Take the experts, where the objective reads any, and the folder to write to."""
        config = self.config
        self.run, self.pace = run, Pace()
        experts = [] if store is None else store.indices()
        self.objective.open(store, experts[: config.max_experts or config.num_experts])

    def distil(self, store: Experts | None, run: RunFolder) -> None:
        """Iterations up to ``Iteration`` inclusive, evaluated before each ``eval_it``-th.

        The published programs evaluate before the last update and never after it; here it is the
        other way round. Interrupted, the run leaves a checkpoint that loses nothing.
        """
        config = self.config
        self.open(store, run)
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
        """One outer iteration.

        Raises:
            FastmttError: it has led astray.
        """
        begin = time.perf_counter()
        loss, lr, finite, passes = self.objective.step(self.iteration)
        if passes and not (math.isfinite(loss) and finite and lr > 0):
            raise FastmttError(
                f"iteration {self.iteration_of_run} went astray: loss {loss:.4g}, learning rate "
                f"{lr:.4g}, wanted a finite loss and a positive rate; lower {self.objective.rates} "
                f"(the best set so far is in {self.run.path})"
            )
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
        own, values = self.objective.state(self.iteration)
        tensors = {**self.set.tensors(), **own}
        return {name: tensor.detach().cpu() for name, tensor in tensors.items()}, {
            **self.meta,
            "stage": self.stage.number,
            "iteration": self.iteration,
            "evaluated": self.evaluated,
            **values,
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
            self.objective.learn(self.set)
            self.objective.restore((tensors, values))
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

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """ValueError where a checkpoint's tensors are not of this run's set."""
        shape = Size([self.count, *self.set.images.shape[1:]])
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

    def _set_of(self, line: str) -> synthetic.Synthetic:
        """The learned set, or the one whose images are averaged."""
        kept = self.set.detached()
        if line == "ema" and self.objective.average is not None:
            kept.images = self.objective.average.shadow.clone().cpu()
        return kept

    def _scores(self, line: str) -> evaluation.Scores:
        device, protocol = self.set.images.device, self.protocol
        made = self._set_of(line).to(device)
        first = self._set_of("").to(device) if line and self._released else None
        desc = f"evaluate{' the average' if line else ''} at {self.iteration_of_run}"
        start = self.objective.evaluated_from(protocol.networks)
        if self.stage.sets and start is None:
            sets = [*self.stage.sets, made]
            return evaluate_stages(self.dataset, sets, protocol, desc=desc)
        return evaluation.evaluate_distilled(
            self.dataset, made, protocol, desc=desc, first=first, start=start
        )

    @property
    def _released(self) -> bool:
        return self.config.ema_eval == "released"

    def _checkpoint(self) -> None:
        with self.pace.saving():
            self.run.save_checkpoint(self.state())
