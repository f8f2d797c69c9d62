"""Draws as data: a key's numbers depend on the key alone; batches by the published rule."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmtt import draws


def numbers(*key):
    return draws.stream(*key).random(4).tolist()


def test_a_key_gives_the_same_numbers_whatever_was_drawn_before():
    first = numbers(3, "batch", 1, 2)
    np.random.seed(0)
    torch.manual_seed(0)
    numbers(3, "dsa", 1, 2)
    assert numbers(3, "batch", 1, 2) == first


def test_every_part_of_the_key_counts():
    keys = [(0, "batch"), (1, "batch"), (0, "dsa"), (0, "batch", 1), (0, "batch", 0, 1),
            (0, "batch", 0, 0, 1), (0, "batch", 0), (2**63, "batch"), (-1, "batch"),
            (0, "")]  # fmt: skip
    drawn = [tuple(numbers(*key)) for key in keys]
    assert len(set(drawn)) == len(keys)


def test_neighbouring_keys_do_not_overlap():
    """The index sets the counter's upper words: 2^64 blocks lie between two indices."""
    long = draws.stream(0, "x", 0).random(50_000)
    assert not np.isin(draws.stream(0, "x", 1).random(1000), long).any()


def test_pinned_values():
    """Runs stored today must be repeatable with later versions."""
    assert draws.stream(7, "batch", 3, 1).integers(10**9, size=3).tolist() == [
        936258595,
        696511850,
        679716559,
    ]
    assert draws.torch_seed(7, "weights", 0) == 2651999513774401471


def test_global_generators_are_left_alone():
    state, state_np = torch.get_rng_state(), np.random.get_state()[1].copy()
    draws.batch_indices(draws.stream(0, "batch"), 10, 3, 8)
    draws.torch_seed(0, "weights")
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == state_np).all()


def test_too_long_an_index_is_refused():
    with pytest.raises(ValueError, match="up to three"):
        draws.stream(0, "x", 1, 2, 3, 4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 25), st.integers(1, 30), st.integers(1, 12))
def test_batches_by_the_published_rule(n, batch, steps):
    got = draws.batch_indices(draws.stream(1, "batch"), n, batch, steps)
    rng, chunks, want = draws.stream(1, "batch"), [], []
    for _ in range(steps):
        if not chunks:
            order = rng.permutation(n)
            chunks = [order[i : i + batch] for i in range(0, n, batch)]
        want.append(chunks.pop())
    assert [g.tolist() for g in got] == [w.tolist() for w in want]
    assert all(g.dtype == torch.int64 for g in got)
    passes = -(-n // batch)
    for first in range(0, steps - passes + 1, passes):  # each pass sees every row once
        one = torch.cat(got[first : first + passes])
        assert sorted(one.tolist()) == list(range(n))
        assert len(got[first]) == n - (passes - 1) * min(batch, n)  # the remainder comes first


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (10, 5), (3, 7)])
def test_published_generator_in_published_order(n, batch):
    generator, mirror = (torch.Generator().manual_seed(4) for _ in range(2))
    chunks, own = [], []
    for _ in range(7):
        got = draws.published_batch_indices(generator, n, batch, chunks)
        if not own:
            own = list(torch.split(torch.randperm(n, generator=mirror), batch))
        assert torch.equal(got, own.pop())


def test_items_made_ahead_are_the_same_and_a_failure_comes_through():
    made = []

    def items():
        for number in range(4):
            made.append(threading.current_thread())
            yield number
        raise ValueError("no more")

    taken = []
    with pytest.raises(ValueError, match="no more"):
        for number in draws.ahead(items()):
            taken.append(number)
    assert taken == [0, 1, 2, 3] and threading.current_thread() not in made


def test_what_is_made_ahead_is_at_most_one():
    made = []
    several = draws.ahead(made.append(n) or [n] for n in range(100))
    assert next(several) == [0]
    several.close()
    assert len(made) <= 2
