"""Keys that were set and have no effect beside the others: worth a word, but no mistake."""

import json

from fastmtt.methods import METHODS
from fastmtt.options.base import ExpertConfig
from fastmtt.options.condense import GRADIENTS, INNER_NETWORKS
from fastmtt.options.distill import DistillConfig

# What a gradient's match reads nothing of, and what would not be worth refusing.
_TRAJECTORIES = (
    *("expert_epochs", "syn_steps", "batch_syn", "min_start_epoch", "max_start_epoch", "lr_lr"),
    *("Sequential_Generation", "current_max_start_epoch", "expansion_end_epoch", "memory"),
    *("lr_y", "Momentum_y", "loss_ratio", "depth_ratio"),
)


def idle_keys(config: ExpertConfig) -> list[str]:
    """Name each key that was set in vain, a sentence each, with what leaves it without effect.

    A value that is the key's own default or stands in the method's row was set by nobody.

    Args:
        config: What `buffer` or `distill` were asked for.
    """
    usual = {**_defaults(config), **METHODS[config.method].choices}
    said = [
        f"{name} is {json.dumps(value)}, but {reason}: it has no effect"
        for name, reason in _reasons(config).items()
        if (value := getattr(config, name)) != usual[name]
    ]
    if isinstance(config, DistillConfig) and config.keep != "all":
        ratio = f"{config.keep}_ratio"
        if not getattr(config, ratio):
            said.append(f"keep is {config.keep}, but {ratio} is 0: no weight is left out")
    return said


def _defaults(config: ExpertConfig) -> dict[str, object]:
    return {name: key.default for name, key in type(config).__dataclass_fields__.items()}


def _reasons(config: ExpertConfig) -> dict[str, str]:
    """Why keys have no effect, by key."""
    found: dict[str, str] = {}
    if not config.rho_max:
        reason = f"rho_max is {json.dumps(config.rho_max)}"
        found |= dict.fromkeys(("alpha", "adaptive"), reason)
    if not isinstance(config, DistillConfig):
        return found
    if config.factor == 1:
        found["decode_type"] = "factor is 1"
    if config.num_intervals == 1:
        found["earlier_epochs"] = "num_intervals is 1"
    if config.objective == "gradmatch":
        found |= dict.fromkeys(_TRAJECTORIES, "objective is gradmatch")
        if config.mixup_net != "cut":
            found |= dict.fromkeys(("mix_p", "beta"), f"mixup_net is {config.mixup_net}")
        return found
    bound = {"batch_syn_max"} if config.decode_type == "bound" else set()
    gradients = {*GRADIENTS.split(), *INNER_NETWORKS.split()} - bound
    found |= dict.fromkeys(sorted(gradients), "objective is matching")
    if config.labels != "soft":
        reason = f"labels are {config.labels}, which are not learned"
        found |= dict.fromkeys(("lr_y", "Momentum_y"), reason)
    # Where the method's row has it on, a file that turns it off was told so by published_config.
    by_row = METHODS[config.method].choices.get("Sequential_Generation", False)
    if not (config.Sequential_Generation or by_row):
        growing = ("current_max_start_epoch", "expansion_end_epoch")
        found |= dict.fromkeys(growing, "Sequential_Generation is false")
    return found
