"""``python -m fastmtt.evaluate``: how well networks learn from a distilled set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmtt import __version__, evaluation
from fastmtt.accuracy_table import Row, by_network, by_set
from fastmtt.command import command
from fastmtt.config import parse
from fastmtt.data import DataSet
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.experts.published import open_experts
from fastmtt.experts.store import store_path
from fastmtt.kept_scores import KeptScores, digest_of
from fastmtt.ops import backends
from fastmtt.options import BaseConfig, DistillConfig, EvaluateConfig
from fastmtt.pictures import save_bars
from fastmtt.pools import pool
from fastmtt.protocol import Protocol, make_protocol, usual_epochs, usual_tests
from fastmtt.run import append_metrics
from fastmtt.staged_evaluation import evaluate_stages
from fastmtt.stages import first_snapshots
from fastmtt.student.zoo import make_network
from fastmtt.subject import Subject, find_subject, load_set, load_stages
from fastmtt.synthetic import Synthetic, load_synthetic

REAL_STEPS = 1000  # of a network trained on all real images: enough to level off


@command
def main(argv: list[str] | None = None) -> None:
    """Train fresh networks, of one kind or several, on a distilled set; print a table."""
    asked = parse("evaluate", argv)
    subject = find_subject(asked)
    config = asked.applied_to(subject.config)
    networks = pool(asked.eval_mode, config.model, asked.model_eval)
    folder = subject.file.parent
    with backends.use(config.backend, config.precision):
        dataset = load_data(config)
        synthetic = load_set(asked, subject, dataset)
        stages = load_stages(asked, subject, dataset)
        protocols = [
            _protocol(asked, dataclasses.replace(config, model=name), dataset, synthetic, stages)
            for name in networks
        ]
        start = None
        if asked.stage_init == "released":
            start = _released_start(subject, protocols[0], networks)
        score = partial(_score, dataset, synthetic, stages, start)
        for name in networks:  # whether there are all of them, before the first is trained
            make_network(name, image_shape=dataset.image_shape, classes=len(dataset.classes))
        sets = [synthetic, *stages[:-1]]
        digest = _digest(config, protocols, dataset, sets, start, asked.compare)
        kept = KeptScores(folder, digest, resume=asked.resume)
        if asked.eval_mode is None:
            rows = _train_on_all(
                subject.name, dataset, synthetic, protocols[0], asked.compare, kept, score
            )
        else:
            rows = _train_each(subject.name, synthetic, protocols, kept, score)
    data = f"{len(dataset.test_images)} test images of {dataset.name} ({dataset.source})"
    if asked.eval_mode is None:
        print(by_set(rows, f"{config.model} on {data}"))
        _tell_stages(rows[0])
    else:
        _tell_each(subject, rows, data, asked)
    _tell(subject, asked)
    append_metrics(folder, [{**row.record(), "file": subject.file.name} for row in rows])
    kept.remove()


def _protocol(
    asked: EvaluateConfig,
    config: BaseConfig,
    dataset: DataSet,
    synthetic: Synthetic,
    stages: list[Synthetic],
) -> Protocol:
    """How a network is trained: as asked, else as published for it and such a set."""
    cells, classes = synthetic.parametrisation.cells, len(dataset.classes)
    epochs = asked.epoch_eval_train
    if epochs is None:
        ipc, shape = len(synthetic.images) // classes, dataset.image_shape
        epochs = usual_epochs(asked.protocol, config.model, shape, classes, ipc, cells, len(stages))
    num_val = usual_tests(len(stages)) if asked.num_val is None else asked.num_val
    return make_protocol(
        asked.protocol,
        config,
        dataset,
        networks=asked.num_eval,
        epochs=max(1, epochs // cells) if asked.same_compute else epochs,
        batch_train=asked.batch_train,
        lr=asked.lr,
        num_val=num_val,
    )


Score = Callable[[Protocol, str, KeptScores], evaluation.Scores]


def _score(
    dataset: DataSet,
    synthetic: Synthetic,
    stages: list[Synthetic],
    start: Tensor | None,
    protocol: Protocol,
    desc: str,
    kept: KeptScores,
) -> evaluation.Scores:
    """Accuracy of networks trained on the set, or on a staged run's sets one after another."""
    if not stages:
        return evaluation.evaluate_distilled(dataset, synthetic, protocol, desc, kept)
    return evaluate_stages(dataset, stages, protocol, desc=desc, kept=kept, start=start)


def _released_start(subject: Subject, protocol: Protocol, networks: list[str]) -> Tensor:
    """Every network's initial weights in PDD's program: those of the first expert's start.

    Raises:
        FastmttError: the experts are gone, or of another network.
    """
    config = subject.config
    assert isinstance(config, DistillConfig)
    if {protocol.model, *networks} != {config.model}:
        raise FastmttError(
            f"stage_init released begins with weights of {config.model}, but the networks are "
            f"{', '.join(networks)}; set stage_init to fresh"
        )
    with_name = load_synthetic(subject.file)[1]
    root = store_path(
        config.buffer_path, with_name["dataset"], config.model, config.zca, config.sparse_ratio
    )
    store = open_experts(root, {"shapes": with_name["shapes"]})
    if not (experts := store.indices()):
        raise FastmttError(
            f"{root} holds no experts, and stage_init released begins with the first one's initial "
            "weights; set stage_init to fresh"
        )
    return first_snapshots(store, experts[:1], protocol.networks)


def _train_on_all(
    name: str,
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: Protocol,
    compare: bool,
    kept: KeptScores,
    score: Score,
) -> list[Row]:
    """One network on the set and, to compare, on real images."""
    model, count = protocol.model, len(synthetic.images)
    lr = protocol.rate(float(synthetic.lr))
    scores = score(protocol, "distilled set", kept)
    rows = [Row(name, model, count, scores, lr, epochs=protocol.epochs)]
    if compare:
        ipc = max(1, count // len(dataset.classes))
        lrs = (evaluation.REAL_LR, lr)
        scores, better = evaluation.evaluate_random(dataset, ipc, lrs, protocol, kept)
        count = ipc * len(dataset.classes)
        note = "the better of two" if lr != evaluation.REAL_LR else ""
        rows.append(Row("random real images", model, count, scores, better, note, protocol.epochs))
        scores = evaluation.evaluate_real(dataset, protocol, REAL_STEPS, kept)
        count, lr = len(dataset.train_images), evaluation.REAL_LR
        note = f"{REAL_STEPS} steps"
        rows.append(Row("all real training images", model, count, scores, lr, note))
    return rows


def _train_each(
    name: str,
    synthetic: Synthetic,
    protocols: list[Protocol],
    kept: KeptScores,
    score: Score,
) -> list[Row]:
    """Several networks on the set, all by the settings it was distilled for."""
    rows = []
    for protocol in protocols:
        model = protocol.model
        scores = score(protocol, f"{model} on the distilled set", kept)
        lr = protocol.rate(float(synthetic.lr))
        rows.append(Row(name, model, len(synthetic.images), scores, lr, epochs=protocol.epochs))
    return rows


def _tell_each(subject: Subject, rows: list[Row], data: str, asked: EvaluateConfig) -> None:
    first = rows[0]
    heading = (
        f"{first.name}, {first.images} images, {first.note}, {first.networks} of each network, "
        f"on {data}"
    )
    print(by_network(rows, heading))
    picture = subject.file.with_name(f"{subject.file.stem}_eval_{asked.eval_mode}.png")
    save_bars(picture, {row.model: row.test for row in rows}, "test accuracy (%)")
    print(f"as a picture: {picture}")


def _tell_stages(row: Row) -> None:
    if row.earlier:
        means = ", ".join(f"{mean:.2f}" for mean, _ in [*row.earlier, row.best or row.test])
        print(f"best on the way, stage by stage: {means} %")


def _tell(subject: Subject, asked: EvaluateConfig) -> None:
    if subject.published is not None and asked.eval_mode is None:
        print(f"published for this setting: {subject.published} %")
    name = subject.file.stem.removeprefix("distilled_")
    line = "ema_" if name.startswith("ema_") else ""
    picture = subject.file.with_name(f"{line}images_{name.removeprefix(line)}.png")
    if subject.ours and picture.is_file():
        print(f"what was distilled: {picture}")


def _digest(
    config: BaseConfig,
    protocols: list[Protocol],
    dataset: DataSet,
    sets: list[Synthetic],
    start: Tensor | None,
    compare: bool,
) -> str:
    """Of everything the numbers come from; real images for training only where they are used."""
    settings = {
        "kind": type(protocols[0]).__name__,
        "protocols": [dataclasses.asdict(one) | {"augment": None} for one in protocols],
        "augment": config.dsa and config.dsa_strategy,
        "classes": len(dataset.classes),
        "compare": REAL_STEPS if compare else None,
        "backend": config.backend,
        "device": str(dataset.test_labels.device),
        "threads": torch.get_num_threads(),
        "versions": [__version__, torch.__version__],
    }
    tensors: list[Any] = [tensor for one in sets for tensor in one.tensors().values()]
    tensors += [] if start is None else [start]
    tensors += [dataset.test_images, dataset.test_labels]
    tensors += [dataset.held_out_images, dataset.held_out_labels]
    if compare:
        tensors += [dataset.train_images, dataset.train_labels]
    return digest_of(settings, tensors)


if __name__ == "__main__":
    main()
