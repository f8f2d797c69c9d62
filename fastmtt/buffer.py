"""``python -m fastmtt.buffer``: train experts on real data and store their trajectories."""

from __future__ import annotations

from typing import Any

from fastmtt.augment import DSA
from fastmtt.config import parse
from fastmtt.data import DataSet
from fastmtt.device import load_data
from fastmtt.experts.store import TrajectoryStore, store_path
from fastmtt.experts.trainer import description, identity, train_experts, versions
from fastmtt.options import BufferConfig, DistillConfig
from fastmtt.progress import say
from fastmtt.run import command
from fastmtt.training import Recipe, students_at_once


def expert_recipe(config: BufferConfig | DistillConfig) -> Recipe:
    """How the configuration wants experts trained (MTT: constant lr, plain SGD, DSA)."""
    augment = DSA(config.dsa_strategy) if config.dsa else None
    if isinstance(config, DistillConfig):
        return Recipe(config.expert_length, config.batch_train, config.expert_lr, augment=augment)
    return Recipe(
        config.train_epochs,
        config.batch_train,
        config.lr_teacher,
        config.mom,
        config.l2,
        config.train_epochs // 2 + 1 if config.decay else None,
        augment,
    )


def fill_store(
    config: BufferConfig | DistillConfig, dataset: DataSet, recipe: Recipe
) -> TrajectoryStore:
    """Train the experts a store still misses; the store it returns holds them all.

    Experts that are there must be of this network, data set, space and recipe.
    """
    root = store_path(config.buffer_path, config.dataset, config.model, config.zca)
    meta: dict[str, Any] = {
        **identity(dataset, config.model),
        "recipe": description(recipe, config.dsa_strategy, config.seed),
    }
    store = TrajectoryStore(root, meta)
    missing = store.missing(config.num_experts)
    if not missing:
        say(f"{root}: all {config.num_experts} experts are there")
        return store
    say(
        f"{root}: {config.num_experts - len(missing)} of {config.num_experts} experts are there; "
        f"training {len(missing)} for {recipe.epochs} epochs"
    )
    at_once = getattr(config, "experts_at_once", None)
    scores = train_experts(
        store,
        dataset,
        config.model,
        recipe,
        {"versions": versions()},
        experts=missing,
        at_once=at_once or students_at_once(recipe.batch_size, dataset.image_shape),
        seed=config.seed,
    )
    mean = 100 * sum(scores.values()) / len(scores)
    say(f"{root}: {len(scores)} experts trained, test accuracy {mean:.1f} % on average")
    return store


@command
def main(argv: list[str] | None = None) -> None:
    """Train what is missing of ``num_experts`` experts; a killed run continues."""
    config = parse("buffer", argv)
    fill_store(config, load_data(config), expert_recipe(config))


if __name__ == "__main__":
    main()
