"""``python -m fastmtt.evaluate``: how well networks learn from a distilled set."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastmtt import evaluation
from fastmtt.augment import DSA
from fastmtt.config import parse
from fastmtt.data import load_space
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.options import DistillConfig, EvaluateConfig
from fastmtt.run import append_metrics, command
from fastmtt.synthetic import load_synthetic

REAL_STEPS = 1000  # of a network trained on all real images: enough to level off


class Row:
    """One line of the table: what was trained on and how well it went."""

    def __init__(self, name: str, images: int, scores: Tensor, note: str = "") -> None:
        """Keep accuracies [networks] as per cent."""
        self.name, self.images, self.note = name, images, note
        self.mean, self.std = 100 * float(scores.mean()), 100 * float(scores.std(correction=0))
        self.networks = len(scores)


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
    dataset = load_data(config)
    saved = load_space(folder / "space.safetensors").describe()
    if saved != dataset.space.describe():
        raise FastmttError(
            f"{folder} was distilled in the space {saved}, the data loaded are in "
            f"{dataset.space.describe()}; give the dataset, data_path and zca it was made with"
        )
    synthetic, _ = load_synthetic(file)
    if tuple(synthetic.images.shape[1:]) != dataset.image_shape:
        raise FastmttError(
            f"{file} holds images {list(synthetic.images.shape[1:])}, {dataset.name} has "
            f"{list(dataset.image_shape)}; give the data set it was distilled from"
        )
    augment = DSA(config.dsa_strategy) if config.dsa else None
    protocol = evaluation.Protocol(
        config.model,
        asked.num_eval,
        asked.epoch_eval_train,
        config.batch_train,
        augment,
        config.seed,
    )
    count, lr = len(synthetic.images), float(synthetic.lr)
    scores = evaluation.evaluate_distilled(dataset, synthetic, protocol)
    rows = [Row(f"distilled set ({asked.which})", count, scores, f"lr {lr:.4g}")]
    if asked.compare:
        scores, better = evaluation.evaluate_random(
            dataset, made_with.ipc, (evaluation.REAL_LR, lr), protocol
        )
        rows.append(Row("random real images", count, scores, f"lr {better:.4g}, the better of two"))
        scores = evaluation.evaluate_real(dataset, protocol, REAL_STEPS)
        note = f"lr {evaluation.REAL_LR:.4g}, {REAL_STEPS} steps"
        rows.append(Row("all real training images", len(dataset.train_images), scores, note))
    heading = (
        f"{config.model} on {len(dataset.test_images)} held-out images of {dataset.name} "
        f"({dataset.source})"
    )
    append_metrics(
        folder,
        [
            {"evaluated": r.name, "accuracy": r.mean, "accuracy_std": r.std, "networks": r.networks}
            for r in rows
        ],
    )
    print(table(rows, heading))
    picture = folder / f"images_{asked.which}.png"
    if picture.is_file():
        print(f"what was distilled: {picture}")


if __name__ == "__main__":
    main()
