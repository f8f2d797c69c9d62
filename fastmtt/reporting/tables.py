"""What the page says in rows and sentences: accuracies, experts, configuration, machine, time."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastmtt.options import DistillConfig
from fastmtt.reporting.metrics import Accuracy, Evaluated, Evaluation, best, held_out_choice
from fastmtt.reporting.reader import CHOICES, LINES, Run

Facts = list[tuple[str, str]]
Lettered = Sequence[tuple[str, Run]]
_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Result:
    """A line of the accuracies' table; empty texts stand for what is not known."""

    what: str
    note: str
    accuracy: str
    published: str
    held_out: str
    networks: str
    lr: str
    trained: str


def results(run: Run) -> list[Result]:
    """Give the accuracies of `distill`'s choices and of `evaluate`."""
    trained = _trained(run.config.model, run.config.epoch_eval_train)
    chosen = [_result(run, *choice, trained) for choice in choices(run)]
    return chosen + [_evaluated(run, one) for one in run.metrics.evaluated]


def choices(run: Run) -> list[tuple[str, str, Evaluation]]:
    """Give (title, how it was chosen, evaluation) of the sets a run offers."""
    rows = []
    for line, evaluations in zip(
        LINES, (run.metrics.evaluations, run.metrics.averages), strict=True
    ):
        offered = {
            "best": best(evaluations),
            "held_out": held_out_choice(evaluations),
            "last": evaluations[-1] if evaluations else None,
        }
        for key, one in offered.items():
            if one is None:
                continue
            title, note = CHOICES[key]
            if key == "last" and not run.finished:
                title = "Latest evaluated"
            rows.append((run.title(line, title), f"{note}; {moment(run, one.iteration)}", one))
    return rows


def moment(run: Run, iteration: int) -> str:
    """Say when an evaluation was: before an iteration, or after the last."""
    if iteration > run.config.Iteration:
        return "after the last iteration"
    return "at the start" if iteration == 0 else f"before iteration {iteration}"


def state(run: Run) -> str:
    """Say how far a run is."""
    wanted = run.config.Iteration + 1
    if run.finished:
        return f"Finished: {wanted} iterations."
    if run.done == 0:
        return f"Unfinished: none of {wanted} iterations is done yet."
    share = 100 * run.done / wanted
    if run.done >= wanted:
        return f"Unfinished: all {wanted} iterations are done, the last set is not evaluated yet."
    return f"Unfinished: {run.done} of {wanted} iterations are done ({share:.0f} %)."


def experts(run: Run) -> Facts:
    """Say what the experts were."""
    if run.experts is None:
        asked = f"{run.config.num_experts} of {run.config.expert_length} epochs asked for"
        return [("Experts", f"{_UNKNOWN}; {asked}")]
    known = run.experts.get
    accuracy = known("test_accuracy")
    return [
        ("Experts", value(known("experts"))),
        ("Snapshots of each", value(known("snapshots"))),
        ("Mean test accuracy", f"{short(accuracy)} %" if accuracy is not None else _UNKNOWN),
        ("Folder", value(known("root"))),
    ]


def recipe(run: Run) -> Facts:
    """Give the recipe that the experts were trained by, as it is stored."""
    stored = (run.experts or {}).get("recipe")
    return [(key, value(stored[key])) for key in stored] if isinstance(stored, dict) else []


def what_was_seen(run: Run) -> str:
    """Say what experts and space saw of the images that a set is selected by."""
    config = run.config
    if config.zca:
        fitted = "ZCA is always fitted on all training images" + (
            ", the held-out ones included." if config.held_out else "."
        )
    else:
        fitted = "Images are normalised by the data set’s constants: nothing was fitted."
    if not config.held_out:
        return f"No training images are held out. {fitted}"
    seen = (run.experts or {}).get("saw_held_out")
    if seen is None:
        experts = "Whether the experts were trained on them is not recorded."
    elif seen:
        experts = "The experts were trained on all training images, the held-out ones included."
    else:
        experts = "The experts were not trained on them."
    split = f"{config.held_out} training images of each class are held out to select a set by."
    return f"{split} {experts} {fitted}"


def timings(run: Run) -> list[tuple[str, str, float]]:
    """Give (part, time, share of all in per cent); of an unfinished run what its metrics tell."""
    if run.summary is not None and run.summary.seconds:
        parts = run.summary.seconds
    else:
        metrics = run.metrics
        parts = {
            "matching": sum(one.seconds or 0 for one in metrics.steps),
            "evaluation": sum(one.seconds or 0 for one in metrics.evaluations),
        }
    total = sum(parts.values())
    if total <= 0:
        return []
    rows = [(part, duration(seconds), 100 * seconds / total) for part, seconds in parts.items()]
    return [*rows, ("total", duration(total), 100.0)]


def costs(run: Run) -> Facts:
    """Give the pace of an iteration and the peak memory."""
    seconds = [one.seconds for one in run.metrics.steps if one.seconds is not None]
    pace = duration(statistics.median(seconds)) if seconds else _UNKNOWN
    memory = run.summary.peak_memory_mb if run.summary else None
    return [
        ("One iteration (median)", pace),
        ("Peak memory", f"{memory:,.0f} MB".replace(",", " ") if memory is not None else _UNKNOWN),
    ]


def machine(run: Run) -> Facts:
    """Give environment.json in lines."""
    facts: Facts = []
    for key, content in run.environment.items():
        if isinstance(content, dict):
            facts += [(f"{name}", value(text)) for name, text in content.items()]
        elif key == "command" and isinstance(content, list):
            facts.append((key, " ".join(map(str, content))))
        else:
            facts.append((key, value(content)))
    return facts


def configuration(run: Run) -> tuple[Facts, Facts]:
    """Give the keys that differ from their defaults, and all others."""
    defaults = {field.name: field.default for field in fields(DistillConfig)}
    changed: Facts = []
    usual: Facts = []
    for key, content in asdict(run.config).items():
        (usual if content == defaults[key] else changed).append((key, value(content)))
    return changed, usual


def differences(runs: Lettered) -> list[tuple[str, list[str]]]:
    """Give the keys in which runs differ, with each run's value."""
    configs = [asdict(run.config) for _, run in runs]
    return [
        (key, [value(config[key]) for config in configs])
        for key in configs[0]
        if any(config[key] != configs[0][key] for config in configs)
    ]


def percent(accuracy: Accuracy) -> str:
    """Write an accuracy with its deviation."""
    if accuracy.mean is None:
        return ""
    spread = f" ± {accuracy.std:.2f}" if accuracy.std is not None else ""
    return f"{accuracy.mean:.2f}{spread} %"


def duration(seconds: float) -> str:
    """Write a time as people say it."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def short(content: Any) -> str:
    """Write a number in four figures; anything else as it is."""
    return f"{content:.4g}" if isinstance(content, float) else value(content)


def value(content: Any) -> str:
    """Write a JSON or YAML value as a configuration file does."""
    if content is None:
        return "null"
    return str(content).lower() if isinstance(content, bool) else str(content)


def _result(run: Run, what: str, note: str, one: Evaluation | Evaluated, trained: str) -> Result:
    return Result(
        what=what,
        note=note,
        accuracy=percent(one.test) or "NaN",
        published=_published(run, one) if isinstance(one, Evaluation) else "",
        held_out=percent(one.held_out),
        networks=value(one.networks) if one.networks is not None else "",
        lr=short(one.lr) if one.lr is not None else "",
        trained=trained,
    )


def _evaluated(run: Run, one: Evaluated) -> Result:
    note = f"by fastmtt.evaluate of {one.file}" if one.file else "by fastmtt.evaluate"
    return _result(run, one.name, note, one, _trained(one.model, one.last_epoch))


def _published(run: Run, one: Evaluation) -> str:
    published = run.config.published
    if published is None or one.test.mean is None:
        return ""
    sign = "+" if one.test.mean >= published else "−"
    return f"{published:g} % ({sign}{abs(one.test.mean - published):.2f})"


def _trained(model: str, last_epoch: int | None) -> str:
    epochs = f"{last_epoch + 1} epochs" if last_epoch is not None else ""
    return ", ".join(part for part in (model, epochs) if part)
