"""Training against torch's own optimiser on the same batches."""

import copy

import pytest
import straight_line
import torch
import torch.nn.functional as F
from compare import assert_close
from recordable import Recordable
from tolerances import FORMULA
from torch import nn

from fastmtt import DSA, draws, training
from fastmtt.cutmix import CutMix
from fastmtt.parametrisation import Canvas
from fastmtt.student import Room, flatten_parameters, initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, Sharpness, accuracy, students_at_once, train

SHAPE, CLASSES, SEED = (1, 8, 8), 3, 7


def make() -> nn.Module:
    return make_network("ConvNetD2W8", image_shape=SHAPE, classes=CLASSES)


def some_examples(n: int = 11) -> Examples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    return Examples(images, torch.randint(CLASSES, (n,), generator=generator))


def start(members: list[int]) -> torch.Tensor:
    return torch.stack([initial_weights(make, SEED, "x init", m) for m in members]).double()


def by_torch(theta: torch.Tensor, examples: Examples, recipe: Recipe, member: int) -> torch.Tensor:
    """The recipe spelled with torch.optim.SGD; the shuffles are data, drawn by their key."""
    net = make().double()
    nn.utils.vector_to_parameters(theta.clone(), net.parameters())

    def optimiser(lr: float) -> torch.optim.SGD:
        return torch.optim.SGD(
            net.parameters(), lr, recipe.momentum, weight_decay=recipe.weight_decay
        )

    sgd = optimiser(recipe.lr)
    for epoch in range(recipe.epochs):
        order = draws.stream(SEED, "x shuffle", member, epoch).permutation(examples.count)
        for rows in torch.from_numpy(order).split(recipe.batch_size):
            sgd.zero_grad()
            F.cross_entropy(net(examples.images[rows]), examples.labels[rows]).backward()
            sgd.step()
        if epoch == recipe.decay_after:
            sgd = optimiser(recipe.lr * 0.1)
    return flatten_parameters(net)


def test_train_is_sgd_with_momentum_decay_and_a_fresh_optimiser_after_the_drop():
    examples = some_examples()
    recipe = Recipe(epochs=5, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.01, decay_after=2)
    students, members = make_student(make(), SHAPE), [0, 5]
    theta = start(members)
    trained = train(students, theta, examples, recipe, seed=SEED, what="x", members=members)
    for row, first, member in zip(trained, theta, members, strict=True):
        wanted = by_torch(first, examples, recipe, member)
        torch.testing.assert_close(row, wanted, rtol=1e-9, atol=1e-12)
        assert (row - first).norm() > 0.01


def test_students_do_not_depend_on_their_company_and_may_differ_in_lr_and_data():
    shared = some_examples()
    own = Examples(
        torch.stack([shared.images, shared.images.flip(0)]),
        torch.stack([shared.labels, shared.labels.flip(0)]),
        shared=False,
    )
    recipe = {"epochs": 2, "batch_size": 4, "augment": DSA("crop_flip")}
    student, members = make_student(make(), SHAPE), [3, 4]
    theta = start(members)
    together = train(
        student,
        theta,
        own,
        Recipe(lr=[0.1, 0.02], **recipe),
        seed=SEED,
        what="x",
        members=members,
    )
    for i, lr in enumerate((0.1, 0.02)):
        one = Examples(own.images[i], own.labels[i])
        alone = train(
            student,
            theta[i : i + 1],
            one,
            Recipe(lr=lr, **recipe),
            seed=SEED,
            what="x",
            members=members[i : i + 1],
        )
        torch.testing.assert_close(together[i], alone[0], rtol=1e-12, atol=1e-14)


def test_after_epoch_sees_every_epoch_and_after_step_every_step():
    epochs, steps = [], []
    theta = start([0])
    trained = train(
        make_student(make(), SHAPE),
        theta,
        some_examples(),
        Recipe(epochs=3, batch_size=4, lr=0.1),
        seed=SEED,
        what="x",
        members=[0],
        after_epoch=lambda epoch, weights, velocity: epochs.append((epoch, weights, velocity)),
        after_step=lambda: steps.append(1),
    )
    assert [epoch for epoch, *_ in epochs] == [1, 2, 3] and len(steps) == 3 * 3
    assert torch.equal(epochs[-1][1], trained) and not torch.equal(epochs[0][1], trained)
    assert all(velocity is None for *_, velocity in epochs)


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_training_goes_on_to_the_same_bits(stop):
    """Begun again behind any epoch, before and after the drop of the learning rate."""
    student = make_student(make(), SHAPE)
    recipe = Recipe(5, 4, lr=[0.1, 0.05], momentum=0.9, weight_decay=1e-3, decay_after=2)
    seen = {}

    def run(theta, **begin):
        return train(
            *(student, theta, some_examples(), recipe),
            **dict(seed=SEED, what="x", members=[0, 3], **begin),
            after_epoch=lambda epoch, weights, velocity: seen.setdefault(
                epoch, (weights, velocity)
            ),
        )

    whole = run(start([0, 3]))
    weights, velocity = seen[stop]
    assert (velocity is None) == (stop == 3)  # forgotten with the drop
    assert torch.equal(run(weights, epochs_done=stop, velocity=velocity), whole)


def test_accuracy_counts_what_the_module_gets_right():
    examples = some_examples(300)
    nets = [make().double() for _ in range(2)]
    theta = torch.stack([flatten_parameters(net) for net in nets])
    found = accuracy(make_student(make(), SHAPE), theta, examples.images, examples.labels)
    for net, share in zip(nets, found.tolist(), strict=True):
        right = (copy.deepcopy(net)(examples.images).argmax(1) == examples.labels).double().mean()
        assert share == right.item()


def test_initial_weights_are_a_function_of_the_key_and_leave_torch_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, again, other = (initial_weights(make, SEED, "expert init", i) for i in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, again) and not torch.equal(one, other)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("sharpness", [None, Sharpness(0.05, 0.4)])
def test_steps_are_recordable_and_have_the_bits_of_plain_ones(
    shared, sharpness, monkeypatch, extension
):
    """Full batches and the remainder, before and after the momentum is forgotten."""
    examples, members = some_examples(), [0, 3]
    if not shared:
        images = torch.stack([examples.images, examples.images.flip(0)])
        examples = Examples(images, examples.labels.expand(2, -1), shared=False)
    recipe = Recipe(5, 4, [0.1, 0.05], 0.9, 1e-3, 2, DSA("crop_color_scale"), sharpness)

    def trained():
        return train(
            *(make_student(make(), SHAPE), start(members), examples, recipe),
            **dict(seed=SEED, what="x", members=members),
        )

    wanted = trained()
    monkeypatch.setattr(Recordable, "made", [])
    monkeypatch.setattr(training, "Captured", Recordable)
    monkeypatch.setattr(Room, "scratch", lambda *_: torch.empty(0, dtype=torch.uint8))
    assert torch.equal(trained(), wanted)
    # batches of 4, 4 and 3 an epoch
    assert [captured.calls for captured in Recordable.made] == [10, 5]


def test_canvases_and_mixed_batches_are_recordable(monkeypatch, extension):
    canvas, members = Canvas(2, 3), [0, 3]
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    examples = Examples(images, torch.arange(6) % 3, parametrisation=canvas)
    recipe = Recipe(4, 3, 0.1, 0.9, augment=DSA("crop_color_scale"), cutmix=CutMix(3, 1))

    def trained():
        given = make_student(make(), SHAPE), start(members), examples, recipe
        return train(*given, seed=SEED, what="x", members=members)

    wanted = trained()
    monkeypatch.setattr(Recordable, "made", [])
    monkeypatch.setattr(training, "Captured", Recordable)
    monkeypatch.setattr(Room, "scratch", lambda *_: torch.empty(0, dtype=torch.uint8))
    assert torch.equal(trained(), wanted)
    assert [captured.calls for captured in Recordable.made] == [8]


def test_small_steps_share_their_overhead_and_large_ones_run_alone():
    assert students_at_once(10, (1, 8, 8)) > 5
    assert students_at_once(256, (3, 32, 32)) == 1


def test_canvases_are_trained_on_through_their_windows():
    """Against a set of the windows themselves, each epoch's its own."""
    canvas, members = Canvas(2, 3), [0, 4]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    student, theta = make_student(make(), SHAPE), start(members)
    recipe = Recipe(epochs=3, batch_size=2, lr=0.1)
    examples = Examples(images, labels, parametrisation=canvas)
    trained = train(student, theta, examples, recipe, seed=SEED, what="x", members=members)
    for row, weights, member in zip(trained, theta, members, strict=True):
        net = make().double()
        nn.utils.vector_to_parameters(weights.clone(), net.parameters())
        sgd = torch.optim.SGD(net.parameters(), 0.1)
        for epoch in range(3):
            order = draws.stream(SEED, "x shuffle", member, epoch).permutation(5)
            places = draws.stream(SEED, "x places", member, epoch)
            for rows in torch.from_numpy(order).split(2):
                drawn = canvas.draw(places, len(rows), SHAPE)
                offsets = drawn[0].tolist()
                stored = torch.cat([images[rows]] * 3)
                windows = straight_line.roll_and_cut(stored, offsets, *SHAPE[1:])
                sgd.zero_grad()
                F.cross_entropy(net(windows), torch.cat([labels[rows]] * 3)).backward()
                sgd.step()
        assert_close(row, flatten_parameters(net), FORMULA)
