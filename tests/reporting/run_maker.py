"""Run folders made by hand, with every file that distill writes."""

import json
from pathlib import Path

import torch
from torch import Tensor

from fastmtt.config import to_yaml
from fastmtt.data.spaces import Normalised, Space, Whitened, new_zca
from fastmtt.options import DistillConfig
from fastmtt.pictures import save_image_grid
from fastmtt.synthetic import Synthetic

CLASSES = ["tabby cat", "dog", "<b>frog</b>"]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def pixels(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def zca_space(size: int = 8) -> Whitened:
    return Whitened(new_zca().fit(pixels(600, size, seed=9)), "made by hand")


def write_metrics(folder: Path, records: list[dict]) -> None:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)


def evaluation(iteration: int, test: float, held_out: float | None = None) -> dict:
    record = {
        "iteration": iteration,
        "accuracy": test,
        "accuracy_std": 0.5,
        "networks": 5,
        "lr": 0.01,
        "seconds_evaluation": 2.0,
    }
    chosen_by = {"held_out_accuracy": held_out, "held_out_accuracy_std": 0.25}
    return record | (chosen_by if held_out is not None else {})


def add_average(record: dict) -> None:
    """Let the averaged images have been evaluated too, a point better."""
    for name in ("accuracy", "held_out_accuracy"):
        record |= {f"ema_{name}": record[name] + 1, f"ema_{name}_std": 0.125}


def step(iteration: int, loss: float | None = 0.5) -> dict:
    return {"iteration": iteration, "loss": loss, "lr": 0.01 + iteration / 1000, "seconds": 0.125}


def make_run(
    folder: Path,
    *,
    zca: bool = True,
    ipc: int = 2,
    classes: int = 3,
    size: int = 8,
    iterations: int = 20,
    evaluations: int = 3,
    **keys,
) -> Path:
    """A finished run whose best set is of iteration 10, by held-out images of 0.

    With `ema_decay` the averages are there too, each accuracy a point above its own.
    """
    folder.mkdir(parents=True)
    config = DistillConfig(
        zca=zca, ipc=ipc, Iteration=iterations, eval_it=10, held_out=5, run_name=folder.name, **keys
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    space: Space = zca_space(size) if zca else Normalised(MEAN, STD)
    space.save(folder / "space.safetensors")
    lines = ("", "ema_") if config.ema_decay is not None else ("",)
    names = [*CLASSES, *(f"class name {label}" for label in range(3, classes))][:classes]
    labels = torch.arange(classes).repeat_interleave(ipc)
    keys_of_sets = [f"{line}{key}" for line in lines for key in ("best", "held_out", "last")]
    for seed, key in enumerate(keys_of_sets):
        images = space.transform(pixels(classes * ipc, size, seed))
        kept = Synthetic(images, labels, torch.tensor(0.0125))
        kept.save(folder / f"distilled_{key}.safetensors", {"classes": names, "iteration": seed})
    at = [round(i * iterations / (evaluations - 1)) for i in range(evaluations)]
    at[-1] = iterations + 1
    for seed, iteration in enumerate(at):
        made = pixels(classes * ipc, size, 100 + seed)
        save_image_grid(folder / f"images_{iteration:06d}.png", made)
    scores = dict.fromkeys(at, (41.0, 50.0)) | {0: (20.0, 60.0), at[1]: (45.25, 55.0)}
    records = [evaluation(i, *scores[i]) for i in at] + [step(i) for i in range(iterations + 1)]
    if len(lines) > 1:
        for record in records[: len(at)]:
            add_average(record)
    records.append(
        {
            "evaluated": "distilled set (best)",
            "accuracy": 44.5,
            "accuracy_std": 0.75,
            "networks": 5,
            "lr": 0.0125,
            "model": "ConvNetD4",
            "epoch_eval_train": 300,
            "file": "distilled_best.safetensors",
        }
    )
    write_metrics(folder, records)
    _write_json(
        folder / "environment.json",
        {
            "machine": "somewhere",
            "gpu": None,
            "versions": {"torch": "2.15.0"},
            "command": ["a", "b"],
        },
    )
    recipe = {"lr_teacher": 0.01, "decay_after": None}
    _write_json(
        folder / "experts.json",
        {
            "root": "buffers/x",
            "experts": 77,
            "recipe": recipe,
            "saw_held_out": False,
            "test_accuracy": 61.5,
            "snapshots": 4,
        },
    )
    seconds = {"data": 3.0, "experts": 3661.0, "matching": 2.5, "evaluation": 6.0}
    _write_json(
        folder / "summary.json",
        {"iterations": iterations + 1, "seconds": seconds, "peak_memory_mb": 1234.5},
    )
    (folder / "log.txt").write_text("2026-01-01 00:00:00 CIFAR10 from a </pre><script>x</script>\n")
    return folder


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))
