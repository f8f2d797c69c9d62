"""``python -m fastmtt.buffer``: train experts on real data and store their trajectories."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace

from fastmtt import budget
from fastmtt.augment import DSA
from fastmtt.command import command
from fastmtt.config import parse
from fastmtt.data import DataSet
from fastmtt.device import load_data
from fastmtt.errors import FastmttError
from fastmtt.experts.curriculum import Curriculum, Pruning
from fastmtt.experts.order import read_order
from fastmtt.experts.published import Experts, PublishedBuffer, open_experts
from fastmtt.experts.store import TrajectoryStore, store_path
from fastmtt.experts.trainer import description, identity, train_experts, versions
from fastmtt.files import sole_user
from fastmtt.ops import backends
from fastmtt.options import BufferConfig, DistillConfig, idle_keys
from fastmtt.options.base import CURRICULUM
from fastmtt.progress import say
from fastmtt.student import ConvNetStudent, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Recipe, Schedule, Sharpness


def expert_recipe(config: BufferConfig | DistillConfig, dataset: DataSet) -> Recipe:
    """How the configuration wants experts trained.

    MTT: constant lr, plain SGD, DSA. FTD: GSAM. PAD: GSAM by a curriculum.

    Raises:
        FastmttError: the difficulty order is missing or of other images.
    """
    # Without a radius GSAM is SGD at twice the cost.
    radius = config.rho_max
    gsam = Sharpness(radius, config.alpha, config.adaptive) if radius else None
    augment = DSA(config.dsa_strategy) if config.dsa else None
    if isinstance(config, DistillConfig):  # its lr_teacher and batch_train are the student's
        lr, batch = config.expert_lr, config.expert_batch
    else:
        lr, batch = config.lr_teacher, config.batch_train
    recipe = Recipe(config.expert_length, batch, lr, augment=augment, precision=config.precision)
    recipe = replace(recipe, sharpness=gsam, schedule=_schedule(config, dataset))
    recipe = replace(recipe, graph=not config.no_graph, sparse_ratio=config.sparse_ratio)
    if isinstance(config, DistillConfig):
        return recipe
    decay_after = config.train_epochs // 2 + 1 if config.decay else None
    return replace(recipe, momentum=config.mom, weight_decay=config.l2, decay_after=decay_after)


def _schedule(config: BufferConfig | DistillConfig, dataset: DataSet) -> Schedule | None:
    """PAD's curriculum or fixed pruning, where an order of the images is named."""
    if config.sort_method is None:
        if config.method == "pad":
            warnings.warn(
                "method is pad, but no sort_method orders the images: experts see all of them in "
                "every epoch, without PAD's curriculum; fastmtt.scores makes an order",
                stacklevel=2,
            )
        return None
    classes = len(dataset.classes)
    order = read_order(config.sort_method, config.indices_path, dataset.train_labels, classes)
    if config.ratio:
        return Pruning(order, config.ratio, config.remove_strategy)
    curriculum = Curriculum(order, **{key: getattr(config, key) for key in CURRICULUM.split()})
    if beyond := curriculum.beyond(config.expert_length):
        keys = ", ".join(f"{key} {getattr(config, key)}" for key in beyond)
        warnings.warn(
            f"experts are trained for {config.expert_length} epochs and never come to the "
            f"curriculum's {keys}; raise train_epochs where they should",
            stacklevel=2,
        )
    return curriculum


def fill_store(config: BufferConfig | DistillConfig, dataset: DataSet) -> Experts:
    """Train the experts a store still misses; the store it returns holds them all.

    Experts that are there must be of this network, data set and space, of all the epochs that are
    read, and of this recipe; a distillation that finds all of them there takes them whatever their
    recipe. Published programs' replay buffers are read where they lie, and not added to.

    Raises:
        FastmttError: experts that do not fit, a recipe that cannot be followed, or a folder that
            cannot be written to.
    """
    root = store_path(
        config.buffer_path, dataset.name, config.model, config.zca, config.sparse_ratio
    )
    kind = identity(dataset, config.model)
    there = open_experts(root, kind)
    takes_any = isinstance(config, DistillConfig) or isinstance(there, PublishedBuffer)
    if takes_any and not there.missing(config.num_experts, config.epochs_read):
        epochs, made_by = there.length(0) - 1, there.meta(0)["recipe"]
        say(
            f"{root}: all {config.num_experts} experts are there, the first of {epochs} epochs by "
            f"{made_by}"
        )
        return there
    recipe = expert_recipe(config, dataset)
    made_by = description(recipe, config.dsa_strategy, config.seed, config.held_out)
    store = TrajectoryStore(root, {**kind, "recipe": made_by})
    at_once = config.experts_at_once if isinstance(config, BufferConfig) else None
    with _held(store), _within_memory(config, dataset, recipe, at_once):
        missing = _missing(store, config)
        say(
            f"{root}: {config.num_experts - len(missing)} of {config.num_experts} experts are "
            f"there; {len(missing)} to train for {recipe.epochs} epochs"
        )
        scores = train_experts(
            store,
            dataset,
            config.model,
            recipe,
            {"versions": versions()},
            experts=missing,
            at_once=at_once,
            seed=config.seed,
        )
    if scores:
        mean = 100 * sum(scores.values()) / len(scores)
        say(f"{root}: {len(scores)} experts trained, test accuracy {mean:.1f} % on average")
    return store


def _within_memory(
    config: BufferConfig | DistillConfig, dataset: DataSet, recipe: Recipe, at_once: int | None
) -> AbstractContextManager[None]:
    """Say, where a GPU's memory ends, what it could hold."""
    device, shape = dataset.train_images.device, dataset.image_shape
    network = make_network(config.model, image_shape=shape, classes=len(dataset.classes))
    if device.type == "cpu" or not isinstance(make_student(network, shape), ConvNetStudent):
        return nullcontext()
    batch_key = "batch_train" if isinstance(config, BufferConfig) else "expert_batch"

    def predict(experts_at_once: int = at_once or 1, **batch: int) -> int:
        student = make_student(network, shape, precision=config.precision)
        assert isinstance(student, ConvNetStudent)
        return budget.training(
            student,
            experts_at_once,
            len(dataset.train_labels),
            batch.get(batch_key, recipe.batch_size),
            shape,
            sharpness=recipe.sharpness is not None,
        )

    if at_once is not None:
        budget.announce({"training": predict()}, device)
    smaller = {"experts_at_once": budget.halves(at_once or 1)}
    return budget.explained(
        device, predict, {**smaller, batch_key: budget.halves(recipe.batch_size)}
    )


@contextmanager
def _held(store: TrajectoryStore) -> Iterator[None]:
    """Hold the folder; makes sure before hours of training that it can be written to."""
    busy = (
        f"another process is training experts in {store.root}; wait for its end or choose another "
        "buffer_path"
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_user(store.root, busy))
            tempfile.TemporaryFile(dir=store.root).close()
        except OSError as error:
            raise FastmttError(
                f"{store.root} cannot be written to ({error.strerror}); choose another buffer_path"
            ) from None
        yield


def _missing(store: TrajectoryStore, config: BufferConfig | DistillConfig) -> list[int]:
    """What is missing, in a sentence of the command's own where experts do not fit."""
    try:
        return store.missing(config.num_experts, config.epochs_read)
    except FastmttError as error:
        if isinstance(config, BufferConfig):
            raise
        raise FastmttError(
            f"{error}; or set num_experts to the {len(store.indices())} experts there, or "
            "expert_lr, expert_batch, seed, rho_max and sort_method to theirs"
        ) from None


def say_idle(config: BufferConfig | DistillConfig) -> None:
    """Warn of each key that was set and has no effect."""
    for sentence in idle_keys(config):
        warnings.warn(sentence, stacklevel=3)


@command
def main(argv: list[str] | None = None) -> None:
    """Train what is missing of ``num_experts`` experts; a killed run goes on where it was."""
    config = parse("buffer", argv)
    say_idle(config)
    with backends.use(config.backend, config.precision):
        fill_store(config, load_data(config))


if __name__ == "__main__":
    main()
