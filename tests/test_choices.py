"""A run's random choices, by key and in the published order."""

import random

import numpy as np
import torch

from fastmtt import DSA
from fastmtt.batches import Plan
from fastmtt.choices import KeyedChoices, PublishedChoices, make_choices

PLAN = Plan(steps=3, segments=3, n=7, batch_size=3, image_shape=(3, 8, 8), augment=DSA())


def test_keyed_segments_go_through_all_experts_before_any_comes_again():
    experts = [2, 3, 5, 7, 11]
    drawn = [KeyedChoices(0).segments(i, 1, experts, 4, 9)[0] for i in range(15)]
    for turn in range(3):
        assert sorted(e for e, _ in drawn[5 * turn : 5 * turn + 5]) == experts
    assert {start for _, start in drawn} <= set(range(4, 9)) and len({s for _, s in drawn}) > 2


def test_keyed_choices_do_not_depend_on_order_or_grouping():
    choices = KeyedChoices(1)
    late = choices.segments(4, 1, [0, 1, 2], 0, 10)
    assert late == KeyedChoices(1).segments(4, 1, [0, 1, 2], 0, 10)
    two = choices.segments(2, 2, [0, 1, 2], 0, 10)
    assert two == [choices.segments(i, 1, [0, 1, 2], 0, 10)[0] for i in (4, 5)]
    three = choices.batches(9, PLAN)
    one = choices.batches(9, PLAN._replace(segments=1))
    for t in range(PLAN.steps):
        assert torch.equal(three.indices[t][:1], one.indices[t])
        assert torch.equal(three.parameters[t].kind[:, :1], one.parameters[t].kind)
        assert torch.equal(three.parameters[t].values[:, :1], one.parameters[t].values)
    orders = torch.cat(three.indices, dim=1)
    assert len(orders.unique(dim=0)) == 3


def test_different_seeds_draw_differently():
    noise = [KeyedChoices(seed).noise(4, 4) for seed in (0, 0, 1)]
    assert torch.equal(noise[0], noise[1]) and not torch.equal(noise[0], noise[2])


def test_published_choices_replay_the_published_order():
    """Straight-line spelling: files of ten experts shuffled, experts within, then the epoch."""
    python, numbers = random.Random(5), np.random.RandomState(5)
    experts = list(range(23))
    wanted = []
    files = [experts[:10], experts[10:20], experts[20:]]
    python.shuffle(files)
    file, place = 0, 0
    buffer = list(files[0])
    python.shuffle(buffer)
    for _ in range(50):
        start = numbers.randint(2, 9)
        wanted.append((buffer[place], start))
        place += 1
        if place == len(buffer):
            place, file = 0, file + 1
            if file == len(files):
                file = 0
                python.shuffle(files)
            buffer = list(files[file])
            python.shuffle(buffer)
    choices = PublishedChoices(5)
    assert [choices.segments(i, 1, experts, 2, 9)[0] for i in range(50)] == wanted


def test_published_start_images_and_noise():
    generator, numbers = torch.Generator().manual_seed(3), np.random.RandomState(3)
    choices = make_choices("published", 3)
    assert torch.equal(choices.noise(2, 3), torch.randn(2, 3, generator=generator))
    rows = np.array([4, 8, 15, 16, 23, 42])
    assert (choices.pick(0, rows, 2) == numbers.permutation(rows)[:2]).all()
