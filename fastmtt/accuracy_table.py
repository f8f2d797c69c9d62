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
        best: the best on test images while training, or None where only the end is tested.
        earlier: the best on each of a staged set's stages but the last, where tested.
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
        self.best = None if scores.best is None else _per_cent(scores.best)
        self.earlier = [] if scores.earlier is None else [_per_cent(one) for one in scores.earlier]

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
        for name, more in {"held_out": self.held_out, "best": self.best}.items():
            if more is not None:
                found |= {f"{name}_accuracy": more[0], f"{name}_accuracy_std": more[1]}
        if self.earlier:
            found["earlier_best_accuracies"] = [mean for mean, _ in self.earlier]
        return found


def by_set(rows: list[Row], heading: str) -> str:
    """One network's accuracies, by what it was trained on, as aligned text."""
    head, *columns = _columns(rows)
    lines = [heading, f"{'trained on':<30}{'images':>8}  {head}{'networks':>8}"]
    for row, column in zip(rows, columns, strict=True):
        line = f"{row.name:<30}{row.images:>8}  {column}{row.networks:>8}  {row.note}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def by_network(rows: list[Row], heading: str) -> str:
    """One set's accuracies, by the network that was trained on it, as aligned text."""
    head, *columns = _columns(rows)
    width = max(len("network"), *(len(row.model) for row in rows))
    lines = [heading, f"{'network':<{width}}  {head}{'seconds':>8}"]
    for row, column in zip(rows, columns, strict=True):
        lines.append(f"{row.model:<{width}}  {column}{row.seconds:>8.1f}")
    return "\n".join(lines)


def _columns(rows: list[Row]) -> list[str]:
    """The accuracies of each row, under their names."""
    columns: dict[str, list[PerCent | None]] = {
        "accuracy": [row.test for row in rows],
        "held out": [row.held_out for row in rows],
        "best on the way": [row.best for row in rows],
    }
    shown = {name: column for name, column in columns.items() if any(column)}
    head = "".join(f"{name:>16}  " for name in shown)
    lines = zip(*shown.values(), strict=True)
    return [head, *("".join(f"{_in_words(one):>16}  " for one in line) for line in lines)]


def _per_cent(accuracies: Tensor) -> PerCent:
    """Mean and standard deviation, the field's (of the population)."""
    return 100 * float(accuracies.mean()), 100 * float(accuracies.std(correction=0))


def _in_words(accuracy: PerCent | None) -> str:
    return "" if accuracy is None else f"{accuracy[0]:.2f} ± {accuracy[1]:.2f} %"
