"""The evaluation's tables: a line for what was trained on, or one for each network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmtt.evaluation import Scores

PerCent = tuple[float, float]  # mean and standard deviation


class Row:
    """One line: what was trained on what, and how well it went.

    Attributes:
        test: accuracy on test images.
        held_out: on held-out ones, or None where there are none.
        seconds: what training and testing took.
    """

    def __init__(
        self,
        name: str,
        model: str,
        images: int,
        scores: Scores,
        lr: float,
        note: str = "",
        epochs: int | None = None,
    ) -> None:
        """Keep accuracies [networks] as per cent; ``epochs`` where the protocol's were trained."""
        self.name, self.model, self.images, self.lr = name, model, images, lr
        self.networks, self.seconds, self.epochs = len(scores.test), scores.seconds, epochs
        self.note = f"lr {lr:.4g}" + (f", {note}" if note else "")
        self.test = _per_cent(scores.test)
        self.held_out = None if scores.held_out is None else _per_cent(scores.held_out)

    def record(self) -> dict[str, Any]:
        """The line for ``metrics.jsonl``."""
        found = {
            "evaluated": self.name,
            "accuracy": self.test[0],
            "accuracy_std": self.test[1],
            "networks": self.networks,
            "lr": self.lr,
            "epoch_eval_train": self.epochs,
            "model": self.model,
            "seconds": self.seconds,
        }
        if self.held_out is not None:
            found |= {
                "held_out_accuracy": self.held_out[0],
                "held_out_accuracy_std": self.held_out[1],
            }
        return found


def by_set(rows: list[Row], heading: str) -> str:
    """One network's accuracies, by what it was trained on, as aligned text."""
    held_out = any(row.held_out for row in rows)
    column = f"{'held out':>16}  " if held_out else ""
    head = f"{'trained on':<30}{'images':>8}  {'accuracy':>16}  {column}{'networks':>8}"
    lines = [heading, head]
    for row in rows:
        column = f"{_in_words(row.held_out):>16}  " if held_out else ""
        accuracy = f"{_in_words(row.test):>16}"
        line = f"{row.name:<30}{row.images:>8}  {accuracy}  {column}{row.networks:>8}  {row.note}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def by_network(rows: list[Row], heading: str) -> str:
    """One set's accuracies, by the network that was trained on it, as aligned text."""
    held_out = any(row.held_out for row in rows)
    column = f"{'held out':>16}  " if held_out else ""
    width = max(len("network"), *(len(row.model) for row in rows))
    lines = [heading, f"{'network':<{width}}  {'accuracy':>16}  {column}{'seconds':>8}"]
    for row in rows:
        column = f"{_in_words(row.held_out):>16}  " if held_out else ""
        accuracy = f"{_in_words(row.test):>16}"
        lines.append(f"{row.model:<{width}}  {accuracy}  {column}{row.seconds:>8.1f}")
    return "\n".join(lines)


def _per_cent(accuracies: Tensor) -> PerCent:
    """Mean and standard deviation, the field's (of the population)."""
    return 100 * float(accuracies.mean()), 100 * float(accuracies.std(correction=0))


def _in_words(accuracy: PerCent | None) -> str:
    return "" if accuracy is None else f"{accuracy[0]:.2f} ± {accuracy[1]:.2f} %"
