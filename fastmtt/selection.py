"""What a run keeps of its evaluations: the last set, the best on test images, on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fastmtt.data import Space
from fastmtt.evaluation import Scores
from fastmtt.run import RunFolder
from fastmtt.synthetic import Synthetic


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


class Selection:
    """Keeps sets of one line in the run's folder, each named for what it is.

    Args:
        space: brings images back to pixels.
        meta: what a set's file says of it.
        line: "" for the learned images, "ema" for their moving average; names files and figures.
    """

    def __init__(self, space: Space, meta: Mapping[str, Any], line: str = "") -> None:
        """Begin with nothing evaluated."""
        self.space, self.meta, self.prefix = space, meta, f"{line}_" if line else ""
        self.last, self.best, self.held_out = Choice(), Choice(), Choice()

    def take(self, run: RunFolder, iteration: int, kept: Synthetic, scores: Scores) -> str:
        """Tell of an evaluation before ``iteration``, keep the set's picture and what is best.

        Returns:
            The evaluation in words.
        """
        mean, std = percent(scores.test)
        picture = run.path / f"{self.prefix}images_{iteration:06d}.png"
        run.save_image_grid(picture.name, kept.to_pixels(self.space))
        run.logger.picture(iteration, f"{self.prefix}distilled", picture)
        self.last = Choice(mean, mean, iteration)
        if self.best.improves(mean):
            self.best = self.last
            self.keep(run, iteration, "best", kept, "test accuracy")
            for name, tensor in kept.tensors().items():
                run.save_pt(f"{self.prefix}{name}_best.pt", tensor)
        told = f"{mean:.2f} ± {std:.2f} %, best {self.best.test:.2f} %"
        if scores.held_out is None:
            return told
        selecting, spread = percent(scores.held_out)
        if self.held_out.improves(selecting):
            self.held_out = Choice(selecting, mean, iteration)
            self.keep(run, iteration, "held_out", kept, "held-out accuracy")
        return f"{told}; on held-out images {selecting:.2f} ± {spread:.2f} %"

    def keep(
        self, run: RunFolder, iteration: int, name: str, kept: Synthetic, chosen_by: str
    ) -> None:
        """Write a set and its picture under a name."""
        meta = {**self.meta, "iteration": iteration, "chosen_by": chosen_by}
        kept.save(run.path / f"distilled_{self.prefix}{name}.safetensors", meta)
        run.save_image_grid(f"{self.prefix}images_{name}.png", kept.to_pixels(self.space))

    def figures(self, scores: Scores) -> dict[str, float]:
        """An evaluation's figures by their names in ``metrics.jsonl``."""
        names = {"accuracy": scores.test, "held_out_accuracy": scores.held_out}
        found: dict[str, float] = {}
        for name, accuracies in names.items():
            if accuracies is not None:
                mean, std = percent(accuracies)
                found |= {f"{self.prefix}{name}": mean, f"{self.prefix}{name}_std": std}
        return found

    def summary(self) -> dict[str, float | int | None]:
        """What ``summary.json`` says."""
        return {
            f"accuracy_{self.prefix}last": self.last.test,
            f"accuracy_{self.prefix}best": self.best.test,
            f"iteration_{self.prefix}best": self.best.iteration,
            f"accuracy_{self.prefix}held_out_choice": self.held_out.test,
            f"iteration_{self.prefix}held_out_choice": self.held_out.iteration,
        }

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: asdict(getattr(self, name)) for name in ("last", "best", "held_out")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.last, self.best, self.held_out = (
            Choice(**state[name]) for name in ("last", "best", "held_out")
        )


def percent(accuracies: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation in per cent."""
    return 100 * float(accuracies.mean()), 100 * float(accuracies.std(correction=0))
