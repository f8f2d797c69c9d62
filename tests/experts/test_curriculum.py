"""Which images an epoch sees: the published counts, real class sizes, and training by it."""

import pytest
import torch

from fastmtt import DSA
from fastmtt.errors import FastmttError
from fastmtt.experts.curriculum import Curriculum, Pruning
from fastmtt.student import initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, Sharpness, train

# README of PAD: the counts of methods.md, epoch by epoch.
PUBLISHED = (0.75, 20, 40, 60, 0.1, 0.2)
EPOCHS = [0, 1, 10, 19, 20, 21, 40, 41, 60, 61, 99]
COUNTS = [3750, 3812, 4375, 4937, 5000, 5000, 5000, 4500, 4500, 4000, 4000]


def orders(*sizes):
    """Shuffled rows of classes that lie one behind another."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(sum(sizes)).split(list(sizes))
    return [row[torch.randperm(len(row), generator=generator)] for row in rows]


def counts(schedule, epoch):
    rows = schedule.rows(epoch)
    assert rows.dtype == torch.int64 and bool((rows[1:] > rows[:-1]).all())
    return [int(torch.isin(row, rows).sum()) for row in schedule.order]


def test_the_published_schedule():
    schedule = Curriculum(orders(5000, 5000), *PUBLISHED)
    assert [counts(schedule, epoch) for epoch in EPOCHS] == [[n, n] for n in COUNTS]


def test_small_and_unequal_classes_go_by_their_own_size():
    schedule = Curriculum(orders(500, 7), *PUBLISHED)
    found = [counts(schedule, epoch) for epoch in (0, 1, 10, 20, 41, 61)]
    assert found == [[375, 5], [381, 5], [437, 6], [500, 7], [450, 7], [400, 6]]


def test_easy_images_come_first_and_go_first():
    order = orders(20, 20)
    schedule = Curriculum(order, *PUBLISHED)
    for epoch, part in ((0, slice(0, 15)), (41, slice(2, 20)), (61, slice(4, 20))):
        wanted = torch.cat([row[part] for row in order]).sort().values
        assert torch.equal(schedule.rows(epoch), wanted)


def test_the_programs_defaults_and_no_growth_see_everything():
    everything = torch.arange(30)
    schedule = Curriculum(orders(10, 20), 1.0, 100, 40, 60, 0.1, 0.1)
    assert all(torch.equal(schedule.rows(epoch), everything) for epoch in range(101))
    assert counts(schedule, 101) == [9, 18]  # the growing phase goes before the others
    assert torch.equal(Curriculum(orders(10, 20), 0.5, 0, 40, 60, 0.1, 0.1).rows(0), everything)


@pytest.mark.parametrize(
    ("epochs", "beyond"),
    [
        (100, []),
        (62, []),
        (61, ["rm_epoch_second"]),
        (42, ["rm_epoch_second"]),
        (41, ["rm_epoch_first", "rm_epoch_second"]),
        (21, ["rm_epoch_first", "rm_epoch_second"]),
        (20, ["add_end_epoch", "rm_epoch_first", "rm_epoch_second"]),
    ],
)
def test_what_short_experts_never_come_to(epochs, beyond):
    schedule = Curriculum(orders(50, 70), *PUBLISHED)
    assert schedule.beyond(epochs) == beyond
    same = [counts(schedule, epochs - 1) == counts(schedule, later) for later in range(99, 200)]
    assert all(same) == (not beyond)


def test_what_changes_nothing_is_not_missed():
    order = orders(50, 70)
    assert Curriculum(order, 1.0, 0, 40, 60, 0.0, 0.0).beyond(1) == []
    assert Curriculum(order, 0.5, 4, 10, 60, 0.1, 0.1).beyond(12) == []


def test_nothing_is_removed_before_all_is_added():
    schedule = Curriculum(orders(50, 70), 1.0, 100, 10, 20, 0.1, 0.1)  # 100: the program's default
    assert schedule.beyond(100) == ["add_end_epoch", "rm_epoch_first", "rm_epoch_second"]
    assert schedule.beyond(101) == ["rm_epoch_first", "rm_epoch_second"]
    assert schedule.beyond(102) == []


def test_fixed_pruning_keeps_the_easy_or_the_hard():
    order = orders(10, 25)
    hard, easy = Pruning(order, 0.3, "hard"), Pruning(order, 0.3, "easy")
    assert counts(hard, 0) == [7, 17] and counts(easy, 99) == [7, 18]
    assert torch.isin(order[1][:17], hard.rows(5)).all()
    assert torch.isin(order[1][7:], easy.rows(5)).all()


def test_pruning_rounds_as_published():
    """int(50000 * 0.819 / 10) is 4095, int(5000 * 0.819) is 4094."""
    assert counts(Pruning(orders(*[5000] * 10), 0.181, "hard"), 0) == [4095] * 10


def test_no_image_at_all_is_refused():
    with pytest.raises(FastmttError, match=r"at most 5 images none.*init_ratio 0.1; raise it"):
        Curriculum(orders(4, 5), 0.1, 20, 40, 60, 0.1, 0.2)
    with pytest.raises(FastmttError, match=r"at most 5 images none.*ratio 0.9; lower it"):
        Pruning(orders(4, 5), 0.9, "hard")


def test_what_is_stored_goes_by_the_rows_and_not_by_a_name():
    one, other = (Pruning(order, 0.5, "easy") for order in (orders(4, 5), orders(5, 4)))
    assert one.describe() == Pruning(orders(4, 5), 0.5, "easy").describe() != other.describe()
    assert one.describe().keys() == {"order", "ratio", "remove_strategy"}


# --- training by a schedule --------------------------------------------------------------------

SHAPE = (1, 8, 8)


def make():
    return make_network("ConvNetD1W8", image_shape=SHAPE, classes=2)


def some_examples(n=30):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, *SHAPE, generator=generator)
    return Examples(images, (torch.arange(n) >= 10).long())


def trained(recipe, examples=None, **more):
    theta = torch.stack([initial_weights(make, 3, "x init", m) for m in (0, 1)])
    more = {"seed": 3, "what": "x", "members": [0, 1], "theta": theta, **more}
    return train(make_student(make(), SHAPE), more.pop("theta"), examples, recipe, **more)


def test_a_schedule_of_all_images_changes_no_bit():
    schedule = Curriculum(orders(10, 20), 1.0, 100, 40, 60, 0.1, 0.1)
    plain = {"augment": DSA("crop_flip"), "epochs": 2, "batch_size": 8, "lr": 0.1}
    whole = trained(Recipe(**plain), some_examples())
    assert torch.equal(trained(Recipe(schedule=schedule, **plain), some_examples()), whole)


def test_what_a_schedule_leaves_out_takes_no_part():
    schedule = Pruning(orders(10, 20), 0.4, "hard")
    rows, examples = schedule.rows(0), some_examples()
    assert len(rows) == 18
    few = Examples(examples.images[rows], examples.labels[rows])
    wanted = trained(Recipe(3, 8, 0.1), few)
    assert torch.equal(trained(Recipe(3, 8, 0.1, schedule=schedule), examples), wanted)


def test_students_with_sets_of_their_own_go_by_it_too():
    schedule, examples = Pruning(orders(10, 20), 0.4, "hard"), some_examples()
    own = Examples(examples.images.repeat(2, 1, 1, 1, 1), examples.labels.repeat(2, 1), False)
    wanted = trained(Recipe(2, 8, 0.1, schedule=schedule), examples)
    assert torch.equal(trained(Recipe(2, 8, 0.1, schedule=schedule), own), wanted)


def test_steps_are_counted_by_what_is_seen():
    schedule = Curriculum(orders(10, 20), 0.5, 2, 3, 4, 0.2, 0.5)
    recipe, steps = Recipe(7, 4, 0.1, schedule=schedule), []
    counted = [recipe.steps(epoch, 30) for epoch in range(7)]
    assert counted == [4, 6, 8, 8, 6, 4, 4]  # of 15, 22, 30, 30, 24, 15, 15 images
    trained(recipe, some_examples(), after_step=lambda: steps.append(1))
    assert len(steps) == sum(counted)


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_gsam_by_a_curriculum_goes_on_to_the_same_bits(stop):
    schedule = Curriculum(orders(10, 20), 0.5, 2, 2, 3, 0.2, 0.4)
    recipe = Recipe(4, 8, 0.1, 0.9, sharpness=Sharpness(0.5, 0.4), schedule=schedule)
    seen = {}
    keep = {"after_epoch": lambda epoch, *state: seen.setdefault(epoch, state)}
    whole = trained(recipe, some_examples(), **keep)
    theta, velocity = seen[stop]
    again = trained(recipe, some_examples(), theta=theta, velocity=velocity, epochs_done=stop)
    assert torch.equal(again, whole)
