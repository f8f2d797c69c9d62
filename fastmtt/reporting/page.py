"""The page: what a run tells, put into the template. Everything a run says is escaped."""

import base64
import hashlib
import string
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastmtt import __version__
from fastmtt.reporting import sprites, tables
from fastmtt.reporting.figures import COLOURS, curves
from fastmtt.reporting.metrics import Evaluation
from fastmtt.reporting.reader import CHOICES, ChosenSet, Run

_HERE = Path(__file__).parent


def render(runs: Sequence[Run]) -> str:
    """Give the HTML page of one run, or of several compared; it needs no other file."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    lettered = [(letter(index), run) for index, run in enumerate(runs)]
    drawn = curves(lettered)
    return environment.get_template("page.html").render(
        title=title(runs),
        several=len(runs) > 1,
        runs=[_view(name, index, run, len(runs)) for index, (name, run) in enumerate(lettered)],
        differences=tables.differences(lettered),
        curves=[(one, Markup(one.svg)) for one in drawn],
        version=__version__,
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup((_HERE / "page.css").read_text("utf-8")),
        script=Markup(script),
        # Should anything of a run get into the page as a script, the browser will not run it.
        script_digest=f"sha256-{digest}",
    )


def title(runs: Sequence[Run]) -> str:
    """Give the page's title."""
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    config = runs[0].config
    return f"{config.dataset}, {config.ipc} image{'s' if config.ipc > 1 else ''} a class"


def letter(index: int) -> str:
    """Give A, B, ... Z, A1, B1, ..."""
    lap, place = divmod(index, 26)
    return string.ascii_uppercase[place] + (str(lap) if lap else "")


def _view(name: str, index: int, run: Run, runs: int) -> dict[str, Any]:
    changed, usual = tables.configuration(run)
    return {
        "letter": name,
        "colour": index % COLOURS,
        "name": run.name,
        "path": str(run.path),
        "about": f"{run.config.method} with {run.config.model}",
        "title": title([run]),
        "finished": run.finished,
        "state": tables.state(run),
        "skipped": run.metrics.skipped,
        "figures": _figures(run),
        "results": tables.results(run),
        "sets": [_set(run, chosen) for chosen in run.sets],
        "panels": [(run.sets.index(panel.set), panel) for panel in sprites.panels(run, runs=runs)],
        "history": _history(run, runs),
        "experts": tables.experts(run),
        "recipe": tables.recipe(run),
        "seen": tables.what_was_seen(run),
        "timings": tables.timings(run),
        "costs": tables.costs(run),
        "machine": tables.machine(run),
        "changed": changed,
        "usual": usual,
        "log": run.log,
    }


def _figures(run: Run) -> list[dict[str, str]]:
    """Give the numbers to be read first."""
    figures = [
        {"title": title, "number": tables.percent(one.test) or "NaN", "note": note}
        for title, note, one in tables.choices(run)
    ]
    published = run.config.published
    if published is not None:
        note = "for this setting, as the configuration says"
        figures.append({"title": "Published", "number": f"{published:g} %", "note": note})
    return figures


def _set(run: Run, chosen: ChosenSet) -> dict[str, str]:
    titles = [CHOICES[key][0] for key in chosen.keys]
    notes = [CHOICES[key][1] for key in chosen.keys]
    if "last" in chosen.keys and not run.finished:
        notes[chosen.keys.index("last")] = "as far as the run is"
    together = " = ".join([titles[0], *(text[0].lower() + text[1:] for text in titles[1:])])
    return {
        "title": run.title(chosen.line, together),
        "note": "; ".join(dict.fromkeys(notes)),
        "lr": tables.short(chosen.lr),
    }


def _history(run: Run, runs: int) -> dict[str, Any] | None:
    history = sprites.history(run, runs=runs)
    if history is None:
        return None
    scores = {one.iteration: _score(one) for one in run.metrics.evaluations}
    captions = []
    for frame in history.frames:
        when = tables.moment(run, frame.iteration)
        score = scores.get(frame.iteration)
        captions.append(f"{when[0].upper()}{when[1:]}" + (f": {score}" if score else ""))
    return {
        "averaged": run.config.ema_decay is not None,
        "frames": list(zip(captions, history.frames, strict=True)),
        "left_out": history.kept - len(history.frames),
        "kept": history.kept,
        "shown": history.shown,
        "total": history.total,
    }


def _score(one: Evaluation) -> str:
    score = tables.percent(one.test)
    average = tables.percent(one.average.test) if one.average else ""
    return f"{score}, their average {average}" if average else score
