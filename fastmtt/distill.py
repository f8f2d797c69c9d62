"""``python -m fastmtt.distill``: learn a synthetic set by matching expert trajectories."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from fastmtt import evaluation, synthetic
from fastmtt.augment import DSA
from fastmtt.batches import Plan
from fastmtt.buffer import expert_recipe, fill_store
from fastmtt.choices import Choices, make_choices
from fastmtt.config import parse
from fastmtt.data import DataSet
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.experts.store import TrajectoryStore
from fastmtt.experts.trainer import identity, versions
from fastmtt.matching import TrajectoryMatcher
from fastmtt.methods import METHODS
from fastmtt.ops import backends
from fastmtt.options import DistillConfig
from fastmtt.progress import Meter, say
from fastmtt.run import RunFolder, check_free, command
from fastmtt.student.zoo import make_network
from fastmtt.sweeps import Gradient

OUTER_MOMENTUM = 0.5  # of the published optimisers of images and learning rate


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
        self.best = -math.inf
        self.meta = {**identity(dataset, config.model), "versions": versions()}

    def distil(self, store: TrajectoryStore, run: RunFolder) -> None:
        """Iterations 0 to ``Iteration`` inclusive, evaluated before each ``eval_it``-th.

        The published programs evaluate before the last update and never after it; here it is the
        other way round.
        """
        config = self.config
        self.store, self.run = store, run
        self.experts = store.indices()[: config.max_experts or config.num_experts]
        with Meter(config.Iteration + 1, "distil") as meter:
            for iteration in range(config.Iteration + 1):
                if self._evaluates(iteration):
                    self.evaluate(iteration)
                begin = time.perf_counter()
                loss = self.step(iteration)
                lr = float(self.set.lr.detach())
                self.run.log_metrics(
                    {
                        "iteration": iteration,
                        "loss": loss,
                        "lr": lr,
                        "seconds": time.perf_counter() - begin,
                    }
                )
                meter.step(f"loss {loss:.4f}, lr {lr:.5f}")
        self.set.save(self.run.path / "distilled_last.safetensors", self.meta)
        pixels = self.dataset.space.to_pixels(self.set.images.detach())
        self.run.save_image_grid("images_last.png", pixels)
        self.evaluate(config.Iteration + 1)

    def step(self, iteration: int) -> float:
        """One outer iteration: match ``segments`` segments, update images and learning rate."""
        start, target = self._segments(iteration)
        draws = self.choices.batches(iteration, self.plan)
        loss = self.matcher(
            start, target, self.set.images, self.set.labels, self.set.lr, draws=draws
        )
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        loss.backward()
        for optimiser in self.optimisers.values():
            optimiser.step()
        self._check(iteration, float(loss.detach()))
        return float(loss.detach())

    def evaluate(self, iteration: int) -> None:
        """Accuracy of fresh networks; keeps the set, its picture and a checkpoint."""
        begin = time.perf_counter()
        scores = evaluation.evaluate_distilled(
            self.dataset, self.set, self.protocol, desc=f"evaluate at {iteration}"
        ).test
        mean, std = 100 * float(scores.mean()), 100 * float(scores.std(correction=0))
        improved = mean > self.best
        self.best = max(self.best, mean)
        self.run.log_metrics(
            {
                "iteration": iteration,
                "accuracy": mean,
                "accuracy_std": std,
                "networks": len(scores),
                "lr": float(self.set.lr.detach()),
                "seconds_evaluation": time.perf_counter() - begin,
            }
        )
        self.run.log(
            f"iteration {iteration}: accuracy {mean:.2f} ± {std:.2f} % of {len(scores)} networks, "
            f"best {self.best:.2f} %, lr {float(self.set.lr.detach()):.5f}"
        )
        kept = self.set.detached()
        pixels = self.dataset.space.to_pixels(kept.images)
        self.run.save_image_grid(f"images_{iteration:06d}.png", pixels)
        if improved:
            kept.save(self.run.path / "distilled_best.safetensors", self.meta)
            self.run.save_image_grid("images_best.png", pixels)
            for name, tensor in (
                ("images", kept.images),
                ("labels", kept.labels),
                ("lr", kept.lr),
            ):
                self.run.save_pt(f"{name}_best.pt", tensor)
        self._checkpoint(iteration)

    def _evaluates(self, iteration: int) -> bool:
        config = self.config
        if iteration == 0:
            return not config.skip_first_eva
        return iteration % config.eval_it == 0 and iteration < config.Iteration

    def _segments(self, iteration: int) -> tuple[Tensor, Tensor]:
        config = self.config
        segments = self.choices.segments(
            iteration,
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

    def _checkpoint(self, iteration: int) -> None:
        tensors = {"images": self.set.images, "labels": self.set.labels, "lr": self.set.lr}
        for name, optimiser in self.optimisers.items():
            for state in optimiser.state.values():
                tensors[f"momentum_{name}"] = state["momentum_buffer"]
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        self.run.save_tensors("checkpoint", kept, {**self.meta, "iteration": iteration})

    def _check(self, iteration: int, loss: float) -> None:
        lr = float(self.set.lr.detach())
        finite = math.isfinite(loss) and bool(self.set.images.detach().isfinite().all())
        if not finite or not lr > 0:
            raise FastmttError(
                f"iteration {iteration} went astray: loss {loss:.4g}, learning rate {lr:.4g}, "
                "wanted a finite loss and a positive rate; lower lr_img or lr_lr (the best set so "
                f"far is in {self.run.path})"
            )


def _gradient(config: DistillConfig) -> Gradient:
    if config.gradient is None:
        return METHODS[config.method].gradient
    return config.gradient if isinstance(config.gradient, str) else ("truncated", config.gradient)


@command
def main(argv: list[str] | None = None) -> None:
    """Train missing experts, distil, keep everything in one folder."""
    config = parse("distill", argv)
    if config.method not in METHODS:
        raise FastmttError(f"method {config.method!r} is not known; known: {', '.join(METHODS)}")
    check_free(config)
    with backends.use(config.backend):
        dataset = load_data(config)
        distillation = Distillation(config, dataset)  # finds mistakes before hours of training
        store = fill_store(config, dataset, expert_recipe(config))
        run = RunFolder(config)
        run.log(f"{METHODS[config.method].source}; {dataset.name} from {dataset.source}")
        dataset.space.save(run.path / "space.safetensors")
        distillation.distil(store, run)
    if config.published is not None:
        run.log(f"published for this setting: {config.published} %")
    say(f"the distilled set is in {run.path}; evaluate it: python -m fastmtt.evaluate {run.path}")


if __name__ == "__main__":
    main()
