"""A run's `metrics.jsonl`: losses, evaluations, and what the evaluate command appended."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastmtt.errors import FastmttError

Number = float | None  # None: NaN, which JSON has no word for, or not written


class Step(NamedTuple):
    """One outer iteration."""

    iteration: int
    loss: Number
    lr: Number
    seconds: Number


class Accuracy(NamedTuple):
    """Mean and standard deviation over networks, in per cent."""

    mean: Number
    std: Number


class Evaluation(NamedTuple):
    """The set as it was before an iteration, tried on fresh networks.

    `average` is the same of FTD's averaged images, where they were evaluated too.
    """

    iteration: int
    test: Accuracy
    held_out: Accuracy
    networks: int | None
    lr: Number
    seconds: Number
    average: "Evaluation | None" = None


class Evaluated(NamedTuple):
    """One line of the evaluate command's table."""

    name: str
    test: Accuracy
    held_out: Accuracy
    networks: int | None
    lr: Number
    model: str
    last_epoch: int | None
    file: str


@dataclass(frozen=True)
class Metrics:
    """All that could be read, iterations in order; of one written twice the later line counts.

    Attributes:
        steps: Outer iterations.
        evaluations: Evaluations of `distill`.
        evaluated: Lines of `evaluate`, as they were appended.
        skipped: Lines that could not be read.
    """

    steps: list[Step]
    evaluations: list[Evaluation]
    evaluated: list[Evaluated]
    skipped: int

    @property
    def averages(self) -> list[Evaluation]:
        """The evaluations of the averaged images."""
        return [one.average for one in self.evaluations if one.average is not None]


def best(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """Give the first of the highest test accuracy, as `distill` chooses it."""
    return _highest((one.test.mean, one) for one in evaluations)


def held_out_choice(evaluations: Iterable[Evaluation]) -> Evaluation | None:
    """Give the first of the highest held-out accuracy."""
    return _highest((one.held_out.mean, one) for one in evaluations)


def read_metrics(path: Path) -> Metrics:
    """Read the file; a missing one is an empty one.

    Lines that do not parse (a run killed while it wrote, or one that writes now) are counted.

    Raises:
        FastmttError: There are lines and none can be read.
    """
    if not path.exists():
        return Metrics([], [], [], 0)
    lines = [line for line in path.read_text("utf-8", errors="replace").split("\n") if line.strip()]
    records = [_record(line) for line in lines]
    read = [record for record in records if record is not None]
    if lines and not read:
        raise FastmttError(
            f"{path} is damaged: none of its {len(lines)} lines is a record of fastmtt.distill; "
            "put it back whole, or remove it to report without curves"
        )
    steps = {record.iteration: record for record in read if isinstance(record, Step)}
    evaluations = {record.iteration: record for record in read if isinstance(record, Evaluation)}
    return Metrics(
        [steps[iteration] for iteration in sorted(steps)],
        [evaluations[iteration] for iteration in sorted(evaluations)],
        [record for record in read if isinstance(record, Evaluated)],
        len(lines) - len(read),
    )


def number(value: Any) -> Number:
    """Give a JSON number as a finite float; None stays, and stands for NaN and infinity.

    Raises:
        ValueError: It is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond every float
        return None


def _highest(scored: Iterable[tuple[Number, Evaluation]]) -> Evaluation | None:
    known = [(score, one) for score, one in scored if score is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def _record(line: str) -> Step | Evaluation | Evaluated | None:
    try:
        record = json.loads(line)
        if "evaluated" in record:
            return _evaluated(record)
        return _evaluation(record) if "accuracy" in record else _step(record)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _step(record: dict[str, Any]) -> Step:
    return Step(
        _whole(record["iteration"]),
        number(record["loss"]),
        number(record.get("lr")),
        number(record.get("seconds")),
    )


def _evaluation(record: dict[str, Any]) -> Evaluation:
    learned = Evaluation(
        _whole(record["iteration"]),
        _accuracy(record, ""),
        _accuracy(record, "held_out_"),
        _whole_or_none(record.get("networks")),
        number(record.get("lr")),
        number(record.get("seconds_evaluation")),
    )
    if "ema_accuracy" not in record:
        return learned
    test, held_out = _accuracy(record, "ema_"), _accuracy(record, "ema_held_out_")
    return learned._replace(average=learned._replace(test=test, held_out=held_out))


def _evaluated(record: dict[str, Any]) -> Evaluated:
    return Evaluated(
        str(record["evaluated"]),
        _accuracy(record, ""),
        _accuracy(record, "held_out_"),
        _whole_or_none(record.get("networks")),
        number(record.get("lr")),
        str(record.get("model") or ""),
        _whole_or_none(record.get("epoch_eval_train")),
        str(record.get("file") or ""),
    )


def _accuracy(record: dict[str, Any], prefix: str) -> Accuracy:
    mean, std = (number(record.get(f"{prefix}{key}")) for key in ("accuracy", "accuracy_std"))
    return Accuracy(mean, std)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{value!r} is no count")
    return value


def _whole_or_none(value: Any) -> int | None:
    return None if value is None else _whole(value)
