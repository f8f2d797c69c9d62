"""``python -m fastmtt.distill``: learn a synthetic set by matching trajectories or gradients."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

from tqdm import tqdm

from fastmtt import budget
from fastmtt.buffer import expert_recipe, fill_store, say_idle
from fastmtt.command import command
from fastmtt.condensation import Condensation
from fastmtt.config import parse
from fastmtt.data import DataSet
from fastmtt.device import load_data
from fastmtt.distillation import Distillation
from fastmtt.errors import FastmttError
from fastmtt.experts.published import Experts, open_experts
from fastmtt.experts.store import TrajectoryStore, store_path
from fastmtt.experts.trainer import description, identity, versions
from fastmtt.labels import Labeller
from fastmtt.loggers import check_installed, make_logger
from fastmtt.methods import METHODS
from fastmtt.ops import backends
from fastmtt.options import DistillConfig
from fastmtt.progress import say
from fastmtt.run import RunFolder, State, open_run, read_metrics, settle
from fastmtt.stages import (
    Stage,
    continue_experts,
    experts_folder,
    stage_file,
    transition_recipe,
)
from fastmtt.student import ConvNetStudent, Student, make_student
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import load_synthetic
from fastmtt.trajectory_objective import TrajectoryObjective


def experts_used(config: DistillConfig, store: Experts) -> dict[str, Any]:
    """What ``experts.json`` says of the experts a run matches."""
    used = _asked(config, store)
    metas = [store.meta(expert) for expert in used]
    accuracies = [meta["test_accuracy"] for meta in metas if "test_accuracy" in meta]
    kept_out = min(_held_out(meta) for meta in metas)
    return {
        "root": str(store.root),
        "experts": len(used),
        "recipe": metas[0]["recipe"],
        "snapshots": store.length(used[0]),
        "saw_held_out": kept_out < config.held_out if config.held_out else None,
        "test_accuracy": 100 * sum(accuracies) / len(accuracies) if accuracies else None,
    }


def _held_out(meta: dict[str, Any]) -> int:
    """Images of each class an expert did not see; of one whose recipe is unknown, none."""
    recipe = meta["recipe"]
    return recipe.get("held_out", 0) if isinstance(recipe, dict) else 0


def _run(config: DistillConfig, dataset: DataSet, seconds: dict[str, float]) -> None:
    """Everything behind the data: experts, distillation, summary."""
    distillation = Distillation(config, dataset)  # finds mistakes before hours of training
    if config.Initialize_Label_With_Another_Model and not config.resume:
        _other_experts(config, dataset)
    begin = time.perf_counter()
    store = fill_store(config, dataset) if config.reads_experts else None
    seconds["experts"] = time.perf_counter() - begin
    with open_run(config) as run:
        if store is not None:
            run.save_json("experts.json", experts_used(config, store))
        dataset.space.save(run.path / "space.safetensors")
        checkpoint = run.load_checkpoint()
        done = _iterations_done(config, checkpoint)
        logger = make_logger(config.logger, run.path, config.project, asdict(config), done)
        with closing(logger):
            run.logger = logger
            distillation = _through_stages(distillation, run, store, checkpoint)
        left_out = sum("left_out" in record for record in read_metrics(run.path))
        if left_out:
            run.log(
                f"{left_out} of {distillation.iteration_of_run} iterations changed nothing: their "
                f"loss was above threshold {config.threshold} or no number"
            )
        summary = distillation.summary()
        run.save_json("summary.json", {**summary, "seconds": {**seconds, **summary["seconds"]}})
        if config.published is not None:
            run.log(f"published for this setting: {config.published} %")


def _within_memory(distillation: Distillation) -> AbstractContextManager[None]:
    """Say what memory will have to hold; where a GPU's cannot, what it could."""
    objective, device = distillation.objective, distillation.dataset.train_images.device
    if isinstance(objective, Condensation):
        return _gradients_within_memory(distillation, objective)
    if not isinstance(objective, TrajectoryObjective):
        return nullcontext()
    config, plan, gradient = distillation.config, objective.plan, objective.gradient
    if device.type == "cpu":
        _say_kept(*budget.tapes(distillation.student, plan, objective.memory, gradient))
        return nullcontext()
    if not isinstance(distillation.student, ConvNetStudent):
        return nullcontext()
    classes = len(distillation.dataset.classes)

    def matching(
        memory: int = objective.memory,
        segments: int = config.segments,
        batch_syn: int | None = config.batch_syn,
    ) -> int:
        sizes = plan._replace(segments=segments, batch_size=batch_syn)
        student = _unused(distillation)
        assert isinstance(student, ConvNetStudent)
        soft = config.labels != "hard"
        return budget.matching(student, sizes, memory, classes, soft, gradient)

    budget.announce({"matching": matching(), **_evaluation_memory(distillation)}, device)
    smaller: dict[str, list[Any]] = {
        "memory": [*budget.halves(objective.memory, 2**20), 0] if objective.memory else [],
        "segments": budget.halves(config.segments),
        "batch_syn": budget.halves(min(config.batch_syn or plan.n, plan.n)),
    }
    return budget.explained(device, matching, smaller)


def _say_kept(kept: int, most: int) -> None:
    if most:
        kept_of_most = " of ".join(tqdm.format_sizeof(count, "B") for count in (kept, most))
        say(f"a match keeps {kept_of_most} of its steps between its sweeps; see --memory")


def _gradients_within_memory(
    distillation: Distillation, objective: Condensation
) -> AbstractContextManager[None]:
    sizes, device = objective.sizes, distillation.dataset.train_images.device

    def matching(batch_real: int = sizes.real, batch_syn_max: int = sizes.synthetic) -> int:
        smaller = sizes._replace(real=batch_real, synthetic=batch_syn_max)
        return budget.condensing(_unused(distillation), smaller, device)

    budget.announce({"matching": matching(), **_evaluation_memory(distillation)}, device)
    smaller = {
        "batch_real": budget.halves(sizes.real),
        "batch_syn_max": budget.halves(sizes.synthetic),
    }
    return budget.explained(device, matching, smaller)


def _evaluation_memory(distillation: Distillation) -> dict[str, int]:
    """Bytes of an evaluation, where they can be predicted."""
    protocol, student = distillation.protocol, _unused(distillation)
    if not isinstance(student, ConvNetStudent):
        return {}
    count = distillation.set.parametrisation.count(distillation.count)
    shape = distillation.dataset.image_shape
    sizes = protocol.networks, count, min(protocol.batch_train, count), shape
    return {"evaluation": budget.training(student, *sizes)}


def _unused(distillation: Distillation) -> Student:
    """The run's student with an empty room."""
    shape, precision = distillation.dataset.image_shape, distillation.config.precision
    return make_student(distillation.network, shape, precision=precision)


def _iterations_done(config: DistillConfig, checkpoint: State | None) -> int:
    """Iterations of the run behind a checkpoint, all stages'."""
    if checkpoint is None:
        return 0
    values = checkpoint[1]
    stage, iteration = values.get("stage", 0), values.get("iteration")
    if not isinstance(stage, int) or not 0 <= stage < config.num_intervals:
        raise FastmttError(
            f"the checkpoint is of stage {stage}, wanted one of {config.num_intervals}, from 0; "
            "put the run's own checkpoint back"
        )
    return stage * (config.Iteration + 1) + (iteration if isinstance(iteration, int) else 0)


def _through_stages(
    first: Distillation, run: RunFolder, store: Experts | None, checkpoint: State | None
) -> Distillation:
    """Distil stage after stage, from the checkpoint's on; give the last one."""
    config, dataset, distillation = first.config, first.dataset, first
    begun = 0 if checkpoint is None else checkpoint[1].get("stage", 0)
    for number in range(begun, config.num_intervals):
        experts = store
        if number:
            files = [stage_file(run.path, earlier) for earlier in range(number)]
            sets = [load_synthetic(file)[0].to(dataset.test_labels.device) for file in files]
            stage = Stage(tuple(sets))
            if store is not None and config.objective == "matching":
                experts = _stage_experts(first, run, store, stage)
            distillation = Distillation(config, dataset, stage)
        _begin_or_go_on(distillation, run, experts, checkpoint)
        checkpoint = None
        with _within_memory(distillation):
            distillation.distil(experts, run)
        if isinstance(distillation.objective, TrajectoryObjective):
            distillation.objective.matcher.forget()  # the next stage's experts and tapes want it
        if config.num_intervals > 1:
            run.keep_as("distilled_best.safetensors", stage_file(run.path, number))
    return distillation


def _stage_experts(first: Distillation, run: RunFolder, store: Experts, stage: Stage) -> Experts:
    """A later stage's experts, trained from where training on the images so far ends."""
    config, dataset = first.config, first.dataset
    recipe = expert_recipe(config, dataset)
    recipe = replace(recipe, epochs=config.epochs_read, sparse_ratio=0.0)
    made_by = description(recipe, config.dsa_strategy, config.seed, config.held_out)
    made_by |= transition_recipe(first.protocol, stage)
    kind = identity(dataset, config.model)
    earlier = stage.number - 1
    before = TrajectoryStore(experts_folder(run.path, earlier)) if earlier else store
    return continue_experts(
        TrajectoryStore(experts_folder(run.path, stage.number), {**kind, "recipe": made_by}),
        before,
        _asked(config, store),
        dataset,
        first.protocol,
        recipe,
        stage,
        {"versions": versions()},
    )


def _begin_or_go_on(
    distillation: Distillation, run: RunFolder, store: Experts | None, checkpoint: State | None
) -> None:
    config, first = distillation.config, distillation.first_iteration
    if checkpoint is None:
        if config.resume and not first:
            run.log("there is no checkpoint to go on from: the run begins")
        run.forget_metrics(first, evaluated=first > 0)  # the earlier stage's last
        source = METHODS[config.method].source
        stage = f", stage {distillation.stage.number + 1}" if config.num_intervals > 1 else ""
        dataset = distillation.dataset
        run.log(f"{source}{stage}; {dataset.name} from {dataset.source}")
        asked = config.labels == "soft" or config.pix_init == "samples_predicted_correctly"
        labeller = None
        if asked and store is not None:
            say("asking the experts for start images and labels")
            labeller = _labeller(config, dataset, store)
        distillation.begin(labeller)
        return
    distillation.restore(checkpoint)
    done = distillation.iteration_of_run
    run.forget_metrics(done, evaluated=distillation.evaluated)
    run.log(f"goes on at iteration {done}")


def _labeller(config: DistillConfig, dataset: DataSet, store: Experts) -> Labeller:
    """The experts that start images and labels are made with, perhaps another network's."""
    model = config.model
    if config.Initialize_Label_With_Another_Model:
        model, store = str(config.Initialize_Label_Model), _other_experts(config, dataset)
    network = make_network(model, image_shape=dataset.image_shape, classes=len(dataset.classes))
    student = make_student(network, dataset.image_shape)
    return Labeller(student, store, _asked(config, store), config.Label_Model_Timestamp)


def _other_experts(config: DistillConfig, dataset: DataSet) -> Experts:
    """The experts of Initialize_Label_Model.

    Raises:
        FastmttError: there are none, or they lack the snapshot that is asked.
    """
    model = str(config.Initialize_Label_Model)
    root = store_path(config.buffer_path, dataset.name, model, config.zca, config.sparse_ratio)
    store = open_experts(root, identity(dataset, model))
    experts = _asked(config, store)
    if not experts:
        raise FastmttError(
            f"{root} holds no experts of Initialize_Label_Model {model}; train them with "
            "fastmtt.buffer, or set Initialize_Label_With_Another_Model to false"
        )
    for expert in experts:
        if (last := store.length(expert) - 1) < config.epochs_labelled:
            raise FastmttError(
                f"{store.path(expert)} has snapshots 0 to {last}, but Label_Model_Timestamp is "
                f"{config.Label_Model_Timestamp}; -1 is the last"
            )
    return store


def _asked(config: DistillConfig, store: Experts) -> list[int]:
    """The numbers of the experts that a run uses."""
    return store.indices()[: config.max_experts or config.num_experts]


@command
def main(argv: list[str] | None = None) -> None:
    """Train missing experts, distil, keep everything in one folder."""
    config = parse("distill", argv)
    say_idle(config)
    config = settle(config)
    check_installed(config.logger)
    begin = time.perf_counter()
    with backends.use(config.backend, config.precision):
        dataset = load_data(config)
        _run(config, dataset, {"data": time.perf_counter() - begin})
    folder = f"{config.save_path}/{config.dataset}/{config.ipc}/{config.model}/{config.run_name}"
    say(f"the distilled set is in {folder}; evaluate it: python -m fastmtt.evaluate {folder}")
    if config.ema_decay is not None:
        say(f"the average of its images: {folder}/distilled_ema_best.safetensors")


if __name__ == "__main__":
    main()
