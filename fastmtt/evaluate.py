"""``python -m fastmtt.evaluate``: how well networks learn from a distilled set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmtt import evaluation
from fastmtt.augment import DSA
from fastmtt.config import parse
from fastmtt.data import DataSet, load_space
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.ops import backends
from fastmtt.options import DistillConfig, EvaluateConfig
from fastmtt.run import append_metrics, command
from fastmtt.synthetic import Synthetic, load_synthetic

REAL_STEPS = 1000  # of a network trained on all real images: enough to level off


class Row:
    """One line of the table: what was trained on and how well it went."""

    def __init__(
        self, name: str, images: int, scores: evaluation.Scores, lr: float, note: str = ""
    ) -> None:
        """Keep accuracies [networks] as per cent."""
        self.name, self.images, self.lr, self.networks = name, images, lr, len(scores.test)
        self.note = f"lr {lr:.4g}" + (f", {note}" if note else "")
        self.mean, self.std = (
            100 * float(scores.test.mean()),
            100 * float(scores.test.std(correction=0)),
        )

    def record(self) -> dict[str, Any]:
        """The line for ``metrics.jsonl``."""
        return {
            "evaluated": self.name,
            "accuracy": self.mean,
            "accuracy_std": self.std,
            "networks": self.networks,
            "lr": self.lr,
        }


def table(rows: list[Row], heading: str) -> str:
    """Rows as aligned text."""
    lines = [heading, f"{'trained on':<30}{'images':>8}  {'accuracy':>16}  {'networks':>8}"]
    for row in rows:
        accuracy = f"{row.mean:.2f} ± {row.std:.2f} %"
        line = f"{row.name:<30}{row.images:>8}  {accuracy:>16}  {row.networks:>8}  {row.note}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def find_run(config: EvaluateConfig) -> tuple[Path, Path, DistillConfig]:
    """The run's folder, its set's file, and the configuration it was made with.

    Raises:
        FastmttError: there is no finished run where one was named.
    """
    given = Path(config.run)
    folder = given if given.is_dir() else given.parent
    file = folder / f"distilled_{config.which}.safetensors" if given.is_dir() else given
    if not file.is_file() or not (folder / "config.yaml").is_file():
        raise FastmttError(
            f"{given} is no run: wanted a folder that fastmtt.distill wrote (config.yaml and "
            f"distilled_{config.which}.safetensors in it) or one of its distilled_*.safetensors"
        )
    return folder, file, parse("distill", ["--cfg", str(folder / "config.yaml")])


@command
def main(argv: list[str] | None = None) -> None:
    """Train fresh networks on a run's set, on request on real images too, and print a table."""
    asked = parse("evaluate", argv)
    folder, file, made_with = find_run(asked)
    config = asked.applied_to(made_with)
    synthetic, _ = load_synthetic(file)
    with backends.use(config.backend):
        dataset = load_data(config)
        _check_fits(folder, file, dataset, synthetic)
        protocol = evaluation.Protocol(
            config.model,
            asked.num_eval,
            asked.epoch_eval_train,
            config.batch_train,
            DSA(config.dsa_strategy) if config.dsa else None,
            config.seed,
        )
        which = file.stem.removeprefix("distilled_")
        rows = _train_on_all(dataset, synthetic, protocol, which, made_with.ipc, asked.compare)
    heading = (
        f"{config.model} on {len(dataset.test_images)} held-out images of {dataset.name} "
        f"({dataset.source})"
    )
    print(table(rows, heading))
    if made_with.published is not None:
        print(f"published for this setting: {made_with.published} %")
    picture = folder / f"images_{which}.png"
    if picture.is_file():
        print(f"what was distilled: {picture}")
    how = {"model": config.model, "epoch_eval_train": asked.epoch_eval_train, "file": file.name}
    append_metrics(folder, [{**row.record(), **how} for row in rows])


def _check_fits(folder: Path, file: Path, dataset: DataSet, synthetic: Synthetic) -> None:
    saved, here = load_space(folder / "space.safetensors").describe(), dataset.space.describe()
    if saved != here:
        raise FastmttError(
            f"{folder} was distilled in the space {saved}, the data loaded are in {here}; give "
            "the dataset, data_path and zca it was made with"
        )
    shape, last = tuple(synthetic.images.shape[1:]), int(synthetic.labels.max())
    if shape != dataset.image_shape or last >= len(dataset.classes):
        raise FastmttError(
            f"{file} holds images {list(shape)} with labels up to {last}, {dataset.name} has "
            f"{list(dataset.image_shape)} and {len(dataset.classes)} classes; give the data set "
            "it was distilled from"
        )


def _train_on_all(
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: evaluation.Protocol,
    which: str,
    ipc: int,
    compare: bool,
) -> list[Row]:
    count, lr = len(synthetic.images), float(synthetic.lr)
    scores = evaluation.evaluate_distilled(dataset, synthetic, protocol)
    rows = [Row(f"distilled set ({which})", count, scores, lr)]
    if compare:
        scores, better = evaluation.evaluate_random(
            dataset, ipc, (evaluation.REAL_LR, lr), protocol
        )
        rows.append(Row("random real images", count, scores, better, "the better of two"))
        scores = evaluation.evaluate_real(dataset, protocol, REAL_STEPS)
        count, lr = len(dataset.train_images), evaluation.REAL_LR
        rows.append(Row("all real training images", count, scores, lr, f"{REAL_STEPS} steps"))
    return rows


if __name__ == "__main__":
    main()
