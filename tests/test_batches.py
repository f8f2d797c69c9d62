"""An iteration's batches: draws by key and as published, and cotangents back to their rows."""

import published_dsa
import pytest
import torch

import fastmtt
from fastmtt import batches

SHAPE = (3, 8, 8)
ARGUMENTS = dict(steps=7, n=10, batch_size=4, image_shape=SHAPE, augment=fastmtt.DSA())


def equal(a, b):
    """Draws are equal: rows, kinds, values."""
    flat_a, flat_b = ([*d.indices, *(t for p in d.parameters for t in p)] for d in (a, b))
    return all(torch.equal(x, y) for x, y in zip(flat_a, flat_b, strict=True))


def segment(draws, s):
    parameters = [type(p)(p.kind[:, s : s + 1], p.values[:, s : s + 1]) for p in draws.parameters]
    return batches.Draws([rows[s : s + 1] for rows in draws.indices], parameters)


def test_segments_draw_the_same_however_they_are_grouped():
    together = batches.draw(seed=5, segments=3, index=(11,), **ARGUMENTS)
    for s in (2, 0, 1):
        alone = batches.draw(seed=5, segments=1, first_segment=s, index=(11,), **ARGUMENTS)
        assert equal(alone, segment(together, s))
    pair = batches.draw(seed=5, segments=2, first_segment=1, index=(11,), **ARGUMENTS)
    assert equal(segment(pair, 1), segment(together, 2))


def test_seed_iteration_and_segment_matter_for_rows_and_augmentation():
    base = dict(seed=5, segments=1, index=(11,))
    first = batches.draw(**base, **ARGUMENTS)
    assert equal(first, batches.draw(**base, **ARGUMENTS))
    for change in (dict(seed=6), dict(index=(12,)), dict(first_segment=1)):
        other = batches.draw(**base | change, **ARGUMENTS)
        assert not equal(first, other._replace(parameters=first.parameters))
        assert not equal(first, other._replace(indices=first.indices))


def test_more_steps_begin_with_the_same_draws():
    few = batches.draw(seed=5, segments=2, **ARGUMENTS)
    many = batches.draw(seed=5, segments=2, **ARGUMENTS | {"steps": 12})
    assert equal(few, batches.Draws(many.indices[:7], many.parameters[:7]))


def test_remainder_first_in_every_pass():
    draws = batches.draw(seed=5, segments=2, **ARGUMENTS)
    assert [rows.shape for rows in draws.indices] == [(2, b) for b in (2, 4, 4, 2, 4, 4, 2)]
    assert [p.values.shape[1:3] for p in draws.parameters] == [r.shape for r in draws.indices]


@pytest.mark.parametrize("batch_size", [None, 10, 99])
def test_whole_set_in_a_new_order_each_step(batch_size):
    draws = batches.draw(seed=5, segments=1, **ARGUMENTS | {"batch_size": batch_size})
    orders = {tuple(rows[0].tolist()) for rows in draws.indices}
    assert len(orders) == 7 and {tuple(sorted(o)) for o in orders} == {tuple(range(10))}


def test_given_rows_leave_the_augmentation_drawn():
    rows = [torch.tensor([0, 1, 2])] * 7
    draws = batches.draw(seed=5, segments=2, indices=rows, **ARGUMENTS)
    assert all(torch.equal(d, rows[0].expand(2, 3)) for d in draws.indices)
    assert all(p.values.shape[1:3] == (2, 3) for p in draws.parameters)
    assert batches.draw(seed=5, segments=2, **ARGUMENTS | {"augment": None}).parameters is None


def published_values(name, batch, height, width, generator):
    """One operation's parameter draws in the order of the published functions."""

    def rand():
        return torch.rand(batch, 1, 1, 1, generator=generator).flatten()

    def randint(low, high):
        return torch.randint(low, high, (batch, 1, 1), generator=generator).flatten().float()

    if name == "color":
        brightness = rand() - 0.5
        saturation = rand() * 2
        return [brightness, saturation, rand() + 0.5]
    if name == "crop":
        shifts = int(height * 0.125 + 0.5), int(width * 0.125 + 0.5)
        return [randint(-shift, shift + 1) for shift in shifts]
    if name == "cutout":
        holes = int(height * 0.5 + 0.5), int(width * 0.5 + 0.5)
        sizes = height, width
        return [randint(0, s + (1 - h % 2)) for s, h in zip(sizes, holes, strict=True)]
    if name == "flip":
        return [(rand() < 0.5).float()]
    if name == "scale":
        horizontal = rand() * (1.2 - 1 / 1.2) + 1 / 1.2
        return [horizontal, rand() * (1.2 - 1 / 1.2) + 1 / 1.2]
    return [(rand() - 0.5) * 2 * 15.0 / 180 * torch.pi]


def test_published_order_against_a_straight_line_loop():
    n, size, steps, segments = 10, 4, 40, 2
    height, width = 16, 9
    generator = torch.Generator().manual_seed(0)
    got = batches.draw_published(
        generator, steps=steps, segments=segments, n=n, batch_size=size,
        image_shape=(3, height, width), augment=fastmtt.DSA(),
    )  # fmt: skip

    mirror = torch.Generator().manual_seed(0)
    names = ["color", "crop", "cutout", "flip", "scale", "rotate"]
    seen = set()
    for s in range(segments):
        chunks = []
        for t in range(steps):
            if not chunks:
                chunks = list(torch.split(torch.randperm(n, generator=mirror), size))
            rows = chunks.pop()
            name = names[torch.randint(0, len(names), (1,), generator=mirror).item()]
            values = published_values(name, len(rows), height, width, mirror)
            assert torch.equal(got.indices[t][s], rows)
            assert got.parameters[t].kind[0, s] == 1 + names.index(name)
            found = got.parameters[t].values[0, s]
            want = torch.stack(values, 1)
            torch.testing.assert_close(found[:, : want.shape[1]], want)
            assert found[:, want.shape[1] :].abs().sum() == 0
            seen.add(name)
    assert seen == set(names)
    assert torch.equal(generator.get_state(), mirror.get_state())


def test_published_order_without_augmentation():
    generator, mirror = (torch.Generator().manual_seed(1) for _ in range(2))
    arguments = ARGUMENTS | {"augment": None, "batch_size": None}
    got = batches.draw_published(generator, segments=1, **arguments)
    assert got.parameters is None
    for rows in got.indices:
        assert torch.equal(rows[0], torch.randperm(10, generator=mirror))


def test_steps_gather_augment_and_give_back():
    random = torch.Generator().manual_seed(0)
    images = torch.randn(10, *SHAPE, generator=random, dtype=torch.float64)
    labels = torch.rand(10, 3, generator=random, dtype=torch.float64)
    draws = batches.draw(seed=2, segments=2, **ARGUMENTS)
    steps = batches.SyntheticSteps(images, labels, 2, draws, fastmtt.DSA())
    assert len(steps) == 7
    steps.want(True, True)
    truth_x, truth_y = images.clone().requires_grad_(), torch.zeros_like(labels)
    total = 0
    for t in range(7):
        rows, (x, y) = draws.indices[t], steps.batch(t)
        assert steps.rows(t) == rows.shape[1] and torch.equal(y, labels[rows])
        kind, values = draws.parameters[t]
        want = torch.stack(
            [
                published_dsa.augment(truth_x[rows[s]], int(kind[0, s]), values[0, s].double())
                for s in range(2)
            ]
        )
        torch.testing.assert_close(x, want.detach())
        gx, gy = (torch.randn(a.shape, generator=random, dtype=torch.float64) for a in (x, y))
        total = total + (want * gx).sum()
        for s in range(2):
            for b, row in enumerate(rows[s]):
                truth_y[row] += gy[s, b]
        steps.pull_back(t, gx, gy)
    torch.testing.assert_close(steps.gx, torch.autograd.grad(total, truth_x)[0])
    torch.testing.assert_close(steps.gy, truth_y)
    steps.want(False, True)
    assert steps.gx is None and steps.gy.abs().sum() == 0 and steps.needs == {"y"}


def test_hard_labels_have_no_cotangent():
    draws = batches.draw(seed=2, segments=1, **ARGUMENTS)
    images, labels = torch.zeros(10, *SHAPE), torch.arange(10)
    steps = batches.SyntheticSteps(images, labels, 1, draws, None)
    steps.want(True, True)
    assert steps.needs == {"x"} and steps.gy is None


def test_given_rows_say_whether_they_are_distinct():
    def given(*rows):
        indices = [torch.tensor(row) for row in rows]
        return batches.draw(
            seed=0, steps=len(rows), segments=2, n=10, batch_size=None, image_shape=SHAPE,
            indices=indices,
        )  # fmt: skip

    assert given([0, 1], [1, 2]).distinct and given([[0, 1], [1, 0]]).distinct
    assert not given([0, 1], [3, 3]).distinct and not given([[0, 1], [1, 1]]).distinct
