"""The evaluation protocol: what is trained, for how long, how it is scored."""

import dataclasses

import pytest
import torch

from fastmtt import evaluation
from fastmtt.choices import KeyedChoices
from fastmtt.data import load
from fastmtt.synthetic import start
from fastmtt.training import Examples

PROTOCOL = evaluation.Protocol("ConvNetD1W8", 3, 40, 256, None, 0)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


@pytest.fixture
def recipes(monkeypatch):
    """The recipes the protocol trains by; training itself goes on."""
    seen = []
    real = evaluation.train

    def train(student, theta, examples, recipe, **options):
        seen.append((recipe, examples, options["members"]))
        return real(student, theta, examples, recipe, **options)

    monkeypatch.setattr(evaluation, "train", train)
    return seen


def test_the_published_protocol_is_1001_epochs_with_the_drop_after_index_501(digits, monkeypatch):
    seen = []

    def not_trained(student, theta, examples, recipe, **options):
        seen.append(recipe)
        return theta

    monkeypatch.setattr(evaluation, "train", not_trained)
    synthetic = start(digits, 1, "real", 0.03, KeyedChoices(0))
    protocol = evaluation.Protocol("ConvNetD1W8", 2, 1000, 256, None, 0)
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
    protocol = evaluation.Protocol("ConvNetD1W8", 1, 1000, 256, None, 0)
    evaluation.evaluate_real(digits, protocol, 12)
    (recipe, examples, _) = recipes[0]
    assert isinstance(examples, Examples) and examples.count == len(digits.train_images)
    assert recipe.epochs == 3 and recipe.lr == [0.01]
