"""Curves of one run or several as inline SVG whose colours the page decides.

Text stays text, in the page's font. Colours are drawn as placeholders and replaced by the page's
CSS variables, so that one drawing serves light, dark and paper.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastmtt.reporting.metrics import Accuracy, Number
from fastmtt.reporting.reader import Run

COLOURS = 8  # of the page's --run-0, --run-1, ...
_INK, _GRID = "#0a0a0a", "#0a0a0b"
_SIZE = (4.7, 3.1)  # inches of 72 units: text of 10 is readable where a phone shows 340 pixels
_POINTS = 400  # of a curve; longer ones are drawn as the middle and the range of as many parts
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "text.color": _INK,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
_NONE = Accuracy(None, None)
Lettered = Sequence[tuple[str, Run]]
Places = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Curves:
    """One drawing.

    Attributes:
        title: What it shows.
        svg: An `<svg>` element, to stand in a page as it is.
        words: The same in words, for those who cannot see it.
        legend: (line, meaning), line being solid, dashed, dotted or band.
    """

    title: str
    svg: str
    words: str
    legend: list[tuple[str, str]]


def curves(runs: Lettered) -> list[Curves]:
    """Draw accuracy, loss and learning rate over the iterations; what has no values is left out.

    Args:
        runs: Letters and runs; letters are shown where there are several.
    """
    drawn = (_accuracy(runs), _loss(runs), _rate(runs))
    return [one for one in drawn if one is not None]


def _accuracy(runs: Lettered) -> Curves | None:
    runs = [(letter, run) for letter, run in runs if run.metrics.evaluations]
    if not runs:
        return None
    held_out = any(
        one.held_out.mean is not None for _, run in runs for one in run.metrics.evaluations
    )
    published = {run.config.published for _, run in runs} - {None}

    def draw(axes: Axes) -> None:
        for index, (letter, run) in enumerate(runs):
            evaluations = run.metrics.evaluations
            at = [one.iteration for one in evaluations]
            for scores, line in (
                ([one.test for one in evaluations], "-"),
                ([one.held_out for one in evaluations], "--"),
                ([one.average.test if one.average else _NONE for one in evaluations], "-."),
            ):
                mean, std = _array(s.mean for s in scores), _array(s.std for s in scores)
                if np.isnan(mean).all():
                    continue
                colour = _colour(index)
                axes.plot(at, mean, line, color=colour, marker="o" if len(at) < 15 else "", ms=3.5)
                axes.fill_between(at, mean - std, mean + std, color=colour, alpha=0.16, lw=0)
                if line == "-" and len(runs) > 1:
                    _mark(axes, letter, at, mean, colour)
        for figure in sorted(value for value in published if value is not None):
            axes.axhline(figure, color=_INK, ls=":", lw=1.2)

    legend = [("solid", "test images"), ("band", "± one standard deviation over the networks")]
    if held_out:
        legend.insert(1, ("dashed", "held-out training images"))
    if any(run.metrics.averages for _, run in runs):
        legend.insert(1, ("dashdot", "the averaged images, on test images"))
    if published:
        legend.append(("dotted", "published"))
    words = [
        f"{_called(letter, runs)}{called}from {_first(values):.2f} to {_last(values):.2f} %, "
        f"at most {np.nanmax(values):.2f} %"
        for letter, run in runs
        for called, line in (
            ("", run.metrics.evaluations),
            ("averaged images ", run.metrics.averages),
        )
        if not np.isnan(values := _array(one.test.mean for one in line)).all()
    ]
    return _drawing("Accuracy", "%", draw, words, legend)


def _loss(runs: Lettered) -> Curves | None:
    return _over_steps(runs, "Matching loss", "", lambda run: [s.loss for s in run.metrics.steps])


def _rate(runs: Lettered) -> Curves | None:
    return _over_steps(
        runs, "Student’s learning rate", "", lambda run: [s.lr for s in run.metrics.steps]
    )


def _over_steps(
    runs: Lettered, title: str, unit: str, values_of: Callable[[Run], list[Number]]
) -> Curves | None:
    lines = [
        (index, letter, np.array([s.iteration for s in run.metrics.steps]), _array(values_of(run)))
        for index, (letter, run) in enumerate(runs)
    ]
    lines = [line for line in lines if len(line[3]) and not np.isnan(line[3]).all()]
    if not lines:
        return None
    parted = any(len(at) > _POINTS for _, _, at, _ in lines)

    def draw(axes: Axes) -> None:
        for index, letter, at, values in lines:
            middle_at, middle, low, high = _parts(at, values)
            axes.plot(middle_at, middle, color=_colour(index))
            if len(values) > _POINTS:
                axes.fill_between(middle_at, low, high, color=_colour(index), alpha=0.16, lw=0)
            if len(runs) > 1:
                _mark(axes, letter, middle_at, middle, _colour(index))
        if _wide(np.concatenate([values for *_, values in lines])):
            axes.set_yscale("log")

    legend = [("solid", "median of neighbouring iterations"), ("band", "their range")]
    words = [
        f"{_called(letter, runs)}from {_first(values):.4g} to {_last(values):.4g}"
        for _, letter, _, values in lines
    ]
    return _drawing(title, unit, draw, words, legend if parted else [])


def _drawing(
    title: str,
    unit: str,
    draw: Callable[[Axes], None],
    words: list[str],
    legend: list[tuple[str, str]],
) -> Curves:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_xlabel("iteration")
        if unit:
            axes.set_ylabel(unit, rotation=0, va="bottom", ha="right", y=1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = f"{title} over the iterations: {'; '.join(words) or 'no finite value'}."
    return Curves(title, _inline(file.getvalue()), text, legend)


def _inline(svg: str) -> str:
    """Make a file's SVG an element of the page: its width, font and colours are the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # it would style the page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # each drawing has the same names
    svg = re.sub(
        r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg, count=1
    )
    svg = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]*", _font, svg)
    svg = svg.replace(_INK, "var(--ink-2)").replace(_GRID, "var(--line)")
    svg = re.sub(r"#0b0c0([0-7])", r"var(--run-\1)", svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _font(match: re.Match[str]) -> str:
    weight = f"; font-weight: {match[1]}" if match[1] else ""
    return f"font-size: {match[2]}px{weight}"


def _colour(index: int) -> str:
    return f"#0b0c0{index % COLOURS}"


def _mark(axes: Axes, letter: str, at: Places, values: np.ndarray, colour: str) -> None:
    """Name a curve at its end: colour alone does not tell everyone which run it is."""
    end = int(np.flatnonzero(~np.isnan(values))[-1])
    axes.annotate(
        letter,
        (float(at[end]), float(values[end])),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        weight="bold",
    )


def _parts(
    at: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give place, median, least and most of at most `_POINTS` parts of a curve."""
    if len(values) <= _POINTS:
        return at, values, values, values
    chunks = [
        (places[len(places) // 2], part[~np.isnan(part)])
        for places, part in zip(
            np.array_split(at, _POINTS), np.array_split(values, _POINTS), strict=True
        )
    ]
    rows = np.array([(p, np.median(v), v.min(), v.max()) for p, v in chunks if len(v)])
    return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]


def _array(values: Iterable[Number]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _wide(values: np.ndarray) -> bool:
    """Whether values span more than two decades, all above zero."""
    known = values[~np.isnan(values)]
    return bool(known.min() > 0 and known.max() / known.min() > 100)


def _called(letter: str, runs: Lettered) -> str:
    return f"run {letter} " if len(runs) > 1 else ""


def _first(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)][0])


def _last(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)][-1])
