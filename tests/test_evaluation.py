"""The evaluation protocol: what is trained, for how long, how it is scored."""

import dataclasses

import in_memory
import pytest
import straight_line
import torch
from compare import assert_close
from tolerances import FORMULA

from fastmtt import DSA, evaluation
from fastmtt.choices import KeyedChoices
from fastmtt.data import load
from fastmtt.protocol import Protocol
from fastmtt.synthetic import start
from fastmtt.training import Examples

PROTOCOL = Protocol("ConvNetD1W8", 3, 40, 256, None, 0)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


@pytest.fixture
def recipes(monkeypatch):
    """The recipes the protocol trains by, the sets and the weights reached; training goes on."""
    seen = []
    real = evaluation.train

    def train(student, theta, examples, recipe, **options):
        ended = real(student, theta, examples, recipe, **options)
        seen.append((recipe, examples, ended))
        return ended

    monkeypatch.setattr(evaluation, "train", train)
    return seen


def test_the_published_protocol_is_1001_epochs_with_the_drop_after_index_501(digits, monkeypatch):
    seen = []

    def not_trained(student, theta, examples, recipe, **options):
        seen.append(recipe)
        return theta

    monkeypatch.setattr(evaluation, "train", not_trained)
    synthetic = start(digits, 1, "real", 0.03, KeyedChoices(0))
    protocol = Protocol("ConvNetD1W8", 2, 1000, 256, None, 0)
    evaluation.evaluate_distilled(digits, synthetic, protocol)
    (recipe,) = seen
    assert recipe.epochs == 1001 and recipe.decay_after == 501
    assert recipe.momentum == 0.9 and recipe.weight_decay == 5e-4
    assert recipe.lr == pytest.approx([0.03, 0.03])


def test_networks_are_fresh_repeatable_and_better_than_chance(digits, recipes):
    synthetic = start(digits, 5, "real", 0.05, KeyedChoices(0))
    first = evaluation.evaluate_distilled(digits, synthetic, PROTOCOL).test
    again = evaluation.evaluate_distilled(digits, synthetic, PROTOCOL).test
    assert first.shape == (3,) and torch.equal(first, again)
    assert len(set(first.tolist())) > 1, "different initial weights give different accuracies"
    assert float(first.min()) > 0.3


def test_networks_are_scored_on_held_out_images_too(digits, recipes):
    split = load("digits", "data", progress=False, held_out=4)
    synthetic = start(digits, 5, "real", 0.05, KeyedChoices(0))
    scores = evaluation.evaluate_distilled(split, synthetic, PROTOCOL)
    whole = evaluation.evaluate_distilled(digits, synthetic, PROTOCOL)
    assert whole.held_out is None and torch.equal(scores.test, whole.test)
    swapped = dataclasses.replace(
        digits, test_images=split.held_out_images, test_labels=split.held_out_labels
    )
    assert torch.equal(
        scores.held_out, evaluation.evaluate_distilled(swapped, synthetic, PROTOCOL).test
    )


def test_random_baseline_draws_anew_for_each_network_and_keeps_the_better_rate(digits, recipes):
    scores, lr = evaluation.evaluate_random(digits, 2, (1e-6, 0.05), PROTOCOL)
    assert lr == 0.05 and float(scores.test.mean()) > 0.3
    images = recipes[0][1].images
    assert images.shape[:2] == (3, 20)
    assert not torch.equal(images[0], images[1])


def test_real_baseline_trains_on_all_images_for_about_the_steps_asked(digits, recipes):
    protocol = Protocol("ConvNetD1W8", 1, 1000, 256, None, 0)
    evaluation.evaluate_real(digits, protocol, 12)
    (recipe, examples, _) = recipes[0]
    assert isinstance(examples, Examples) and examples.count == len(digits.train_images)
    assert recipe.epochs == 3 and recipe.lr == [0.01]


def trained_by_hand(network, theta, synthetic, epochs):
    """The protocol on whole batches: SGD, decay at half time with the momentum forgotten."""
    lr, velocity = synthetic.lr, 0.0
    for epoch in range(epochs + 1):
        leaf = theta.clone().requires_grad_()
        outputs = straight_line.logits(network, leaf, synthetic.images)
        loss = straight_line.cross_entropy(outputs, synthetic.labels)
        velocity = 0.9 * velocity + torch.autograd.grad(loss, leaf)[0] + 5e-4 * theta
        theta = theta - lr * velocity
        if epoch == epochs // 2 + 1:
            lr, velocity = 0.1 * lr, 0.0
    return theta


def test_the_released_evaluation_of_an_average_goes_on_with_the_images_networks(monkeypatch):
    """FTD's program trains the networks it has just scored the images with."""
    data, protocol = in_memory.make_dataset(), dataclasses.replace(PROTOCOL, epochs=7)
    fresh, trained, scored = evaluation._fresh, [], evaluation._scores
    monkeypatch.setattr(evaluation, "_fresh", lambda *given: fresh(*given).double())

    def scores(theta, *given):
        trained.append(theta)
        return scored(theta, *given)

    monkeypatch.setattr(evaluation, "_scores", scores)
    images, average = (start(data, 2, "real", 0.05, KeyedChoices(seed)) for seed in (0, 1))
    alone = evaluation.evaluate_distilled(data, images, protocol)
    released = evaluation.evaluate_distilled(data, average, protocol, first=images)
    assert alone.test.shape == released.test.shape == (3,)
    network = in_memory.network_of(protocol.model)
    for member, (of_images, of_average) in enumerate(zip(*trained, strict=True)):
        theta = fresh(data, protocol, "evaluation", [member])[0].double()
        theta = trained_by_hand(network, theta, images, 7)
        assert_close(of_images, theta, FORMULA)
        assert_close(of_average, trained_by_hand(network, theta, average, 7), FORMULA)


def test_the_first_of_two_sets_trains_networks_to_the_bits_of_it_alone(digits, recipes):
    """Batches and augmentation of the first set are drawn as without a second."""
    first, second = (start(digits, 5, "real", 0.05, KeyedChoices(seed)) for seed in (0, 1))
    protocol = dataclasses.replace(PROTOCOL, epochs=2, batch_train=16, augment=DSA())
    evaluation.evaluate_distilled(digits, first, protocol)
    evaluation.evaluate_distilled(digits, second, protocol, first=first)
    alone, before, after = (ended for *_, ended in recipes)
    assert torch.equal(alone, before) and not torch.equal(before, after)
