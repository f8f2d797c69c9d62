"""How many students train side by side: what is measured where, and when to stop looking."""

import pytest
import torch

from fastmtt import at_once
from fastmtt.at_once import measured, together
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe


def rates_of(table, most, room=10**9):
    asked = []

    def rate(count):
        asked.append(count)
        if count > room:
            raise torch.OutOfMemoryError("full")
        return table(count)

    return measured(rate, most), asked


def test_numbers_grow_until_they_gain_nothing():
    found, asked = rates_of(lambda count: 10.0 * min(count, 20), 100)
    assert asked == [1, 4, 16, 64, 100] and max(found, key=found.get) == 64
    found, asked = rates_of(lambda count: 10.0 + 0.01 * count, 100)
    assert asked == [1, 4]


def test_numbers_grow_up_to_the_most_there_are_and_to_the_memory_there_is():
    assert rates_of(float, 5)[1] == [1, 4, 5]
    assert rates_of(float, 1)[1] == [1]
    found, asked = rates_of(float, 100, room=20)
    assert asked == [1, 4, 16, 64] and list(found) == [1, 4, 16]
    with pytest.raises(torch.OutOfMemoryError):
        rates_of(float, 100, room=0)


SHAPE = (1, 8, 8)


@pytest.mark.parametrize("count", [300, 10])
def test_a_trial_trains_so_many_and_leaves_no_memory_behind(count, monkeypatch):
    """On a CPU, with the GPU's clock stopped: what is tried is a training like any other."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    net = make_network("ConvNetD1W8", image_shape=SHAPE, classes=3)
    student = make_student(net, SHAPE)
    examples = Examples(torch.randn(count, *SHAPE), torch.randint(3, (count,)))
    recipe = Recipe(50, 16, [0.1] * 7, 0.9, 1e-3, decay_after=3)
    assert at_once._rate(student, examples, recipe, 3) > 0
    assert student.room.bytes == 0


def test_on_a_cpu_the_caches_decide():
    net = make_network("ConvNetD1W8", image_shape=SHAPE, classes=3)
    examples = Examples(torch.zeros(20, *SHAPE), torch.zeros(20, dtype=torch.int64))
    assert together(make_student(net, SHAPE), examples, Recipe(1, 10, 0.1), 3) > 3
