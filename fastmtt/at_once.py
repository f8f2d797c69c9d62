"""How many students train side by side: on a CPU what its caches hold, on a GPU what is fastest.

A student depends on its own number alone: the choice changes no result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch

from fastmtt.progress import say
from fastmtt.student import ConvNetStudent
from fastmtt.training import Examples, Network, Recipe, students_at_once, train

_TRIED = 4  # each number tried is so many times the last one
_GAIN = 1.03  # a larger number must be so much faster to be worth looking further
_WARM, _TIMED = 4, 8  # steps: the first ones compile, tune and record
_known: dict[tuple[object, ...], int] = {}  # by all that the choice depends on


def together(student: Network, examples: Examples, recipe: Recipe, most: int) -> int:
    """How many of ``most`` students to train side by side.

    A GPU is asked once for each kind of training, by a few steps of 1, 4, 16 and so on students, as
    far as its memory and the gain go.
    """
    if examples.images.device.type == "cpu":
        return students_at_once(recipe.batch_size, examples.image_shape)
    if not isinstance(student, ConvNetStudent):
        return 1
    batch = min(recipe.batch_size, examples.count)
    kind = (student.size, batch, examples.image_shape, recipe.precision, recipe.sharpness is None)
    if (*kind, most) not in _known:
        rates = measured(lambda count: _rate(student, examples, recipe, count), most)
        _known[*kind, most] = max(rates, key=lambda count: rates[count])
        told = ", ".join(f"{count}: {rate:.0f}" for count, rate in rates.items())
        say(f"{_known[*kind, most]} networks side by side; steps a second of all by number: {told}")
    return _known[*kind, most]


def measured(rate: Callable[[int], float], most: int) -> dict[int, float]:
    """Rates by number of students, for numbers up to ``most`` until memory or the gain ends.

    Raises:
        OutOfMemoryError: one student is too many.
    """
    rates: dict[int, float] = {}
    count = 1
    while True:
        try:
            rates[count] = rate(count)
        except torch.OutOfMemoryError:
            if not rates:
                raise
            torch.cuda.empty_cache()
            return rates
        *before, last = rates.values()
        if count == most or (before and last < _GAIN * max(before)):
            return rates
        count = min(count * _TRIED, most)


def _rate(student: ConvNetStudent, examples: Examples, recipe: Recipe, count: int) -> float:
    """Steps a second of ``count`` students, added up."""
    batch = min(recipe.batch_size, examples.count)
    rows = torch.arange(min(examples.count, batch * (_WARM + _TIMED)))
    some = examples.of(torch.arange(count))
    if examples.shared:
        some = replace(examples, images=examples.images[rows], labels=examples.labels[rows])
    epochs = -(-(_WARM + _TIMED) * batch // some.count)
    short = replace(recipe, epochs=epochs, lr=1e-3, decay_after=None, schedule=None)
    generator = torch.Generator().manual_seed(0)
    theta = 0.05 * torch.randn(count, student.size, generator=generator)
    times: list[float] = []

    def tick() -> None:
        if len(times) in (_WARM, _WARM + _TIMED - 1):
            torch.cuda.synchronize()
        times.append(perf_counter())

    try:
        train(
            student,
            theta.to(some.images.device),
            some,
            short,
            seed=0,
            what="trial",
            members=range(count),
            after_step=tick,
        )
    finally:
        student.room.clear()  # the number chosen is another one
    return count * (_TIMED - 1) / (times[_WARM + _TIMED - 1] - times[_WARM])
