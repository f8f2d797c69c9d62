"""How good a set is: test accuracy of fresh networks trained on it, by the field's protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmtt.at_once import together
from fastmtt.choices import KeyedChoices
from fastmtt.data import DataSet
from fastmtt.draws import torch_seed
from fastmtt.progress import Meter
from fastmtt.protocol import Protocol
from fastmtt.student import ConvNetStudent, Structure, find_structure, initial_weights
from fastmtt.student.single import SingleNetwork
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import Synthetic, real_rows
from fastmtt.training import Examples, Network, accuracy, train

REAL_LR = 0.01  # the field's learning rate for training on real images


class Scores(NamedTuple):
    """How well each network does.

    Attributes:
        test: accuracies on test images, float64 [networks].
        held_out: accuracies on held-out training images [networks], or None where there are none.
        seconds: what training and testing them took.
        best: the best of each one's accuracies on test images, the last and those on the way to it
            [networks], or None where the protocol tests but once.
        earlier: of a staged set the best on each stage but the last [stages,networks], where the
            protocol tests on the way.
    """

    test: Tensor
    held_out: Tensor | None
    seconds: float = 0.0
    best: Tensor | None = None
    earlier: Tensor | None = None


Kept = MutableMapping[str, Scores]
# Trains some networks: of one, weights [S,P], numbers [S] and what to call after every step, the
# trained weights and, stage by stage, the test accuracies [S] on the way.
TrainAll = Callable[
    [Network, Tensor, Tensor, Callable[[], None]], tuple[Tensor, list[list[Tensor]]]
]


def evaluate(
    dataset: DataSet,
    examples: Examples,
    lr: float | list[float],
    protocol: Protocol,
    *,
    what: str = "evaluation",
    desc: str = "evaluate",
    kept: Kept | None = None,
    before: Examples | None = None,
    start: Tensor | None = None,
) -> Scores:
    """Accuracy of fresh networks trained on ``examples``.

    Where the compiled verbs serve the network, several train side by side; others, which may then
    keep statistics and draw numbers, one after another.

    Args:
        dataset: gives the test images, and held-out ones where it has them.
        examples: one set for all networks, or one each.
        lr: learning rate, or one a network.
        protocol: how to train.
        what: names the networks' draws; equal names mean equal initial weights.
        desc: shown with the progress.
        kept: networks it holds are not trained again, those that are trained are put there.
        before: what the networks are trained on first, to the bits they would reach on it alone;
            then they go on on ``examples``, with a new optimiser. ``kept`` must be None then.
        start: the networks' initial weights [networks,P] in place of fresh ones.
    """
    # the first set is drawn from as it is when it stands alone: these are the networks it trains
    sets = {what: examples} if before is None else {what: before, f"{what} after": examples}

    def train_all(
        network: Network, theta: Tensor, group: Tensor, after_step: Callable[[], None]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        tested: list[Tensor] = []

        def validate(done: int, now: Tensor, _: Tensor | None) -> None:
            if done in protocol.validations:
                tested.append(accuracy(network, now, dataset.test_images, dataset.test_labels))

        for draws, given in sets.items():
            tested.clear()
            members, own = group.tolist(), given.of(group)
            theta = trained_on(
                network, theta, own, lr, protocol, draws, members, after_step, validate
            )
        return theta, [tested]

    return in_groups(
        dataset,
        protocol,
        train_all,
        examples=examples,
        steps=len(sets) * epoch_steps(examples, protocol) * protocol.length,
        what=what,
        desc=desc,
        settings=f"lr {lr!r}",
        kept=kept,
        start=start,
    )


def epoch_steps(examples: Examples, protocol: Protocol) -> int:
    """Steps of an epoch over a set."""
    return -(-examples.count // min(protocol.batch_train, examples.count))


def in_groups(
    dataset: DataSet,
    protocol: Protocol,
    train_all: TrainAll,
    *,
    examples: Examples,
    steps: int,
    what: str,
    desc: str,
    settings: str,
    kept: Kept | None = None,
    start: Tensor | None = None,
) -> Scores:
    """Accuracy of networks trained in groups that fit side by side.

    Args:
        dataset: gives the images to test on.
        protocol: gives the networks.
        train_all: see ``TrainAll``.
        examples: a set like those to train on: what fits side by side is measured with it.
        steps: that ``train_all`` takes.
        what: names the draws of initial weights.
        desc: shown with the progress.
        settings: what tells scores apart in ``kept``, besides ``desc``.
        kept: networks it holds are not trained again, those that are trained are put there.
        start: initial weights [networks,P] in place of fresh ones.
    """
    kept = {} if kept is None else kept
    network = _network(dataset, protocol)
    at_once = 1
    if isinstance(network, ConvNetStudent):
        usual = protocol.recipe(examples, [REAL_LR])
        at_once = together(network, examples, usual, protocol.networks)
    groups = torch.arange(protocol.networks).split(at_once)
    names = [f"{desc}: {settings}, networks {int(g[0])} to {int(g[-1])}" for g in groups]
    todo = [(name, group) for name, group in zip(names, groups, strict=True) if name not in kept]
    with Meter(len(todo) * steps, desc) as meter:
        for name, group in todo:
            begun, network = monotonic(), _network(dataset, protocol)
            if start is None:
                theta = _fresh(dataset, protocol, what, group.tolist())
            else:
                theta = start[group.to(start.device)]
            theta, tested = train_all(network, theta, group, meter.step)
            scores = _scores(theta, network, dataset)
            *earlier, last = [torch.stack(some).amax(0) if some else None for some in tested]
            kept[name] = scores._replace(
                seconds=monotonic() - begun,
                best=None if last is None else torch.maximum(last, scores.test),
                earlier=_joined(earlier, torch.stack),
            )
    parts = [kept[name] for name in names]
    return Scores(
        torch.cat([part.test for part in parts]),
        _joined([part.held_out for part in parts], torch.cat),
        sum(part.seconds for part in parts),
        _joined([part.best for part in parts], torch.cat),
        _joined([part.earlier for part in parts], partial(torch.cat, dim=1)),
    )


def _joined(parts: list[Tensor | None], join: Callable[[list[Tensor]], Tensor]) -> Tensor | None:
    """All parts as one, where there are any."""
    found = [part for part in parts if part is not None]
    return join(found) if found else None


def _network(dataset: DataSet, protocol: Protocol) -> Network:
    """Many networks side by side where the compiled verbs serve them, else one as it is."""
    module, bf16 = _make(dataset, protocol), protocol.precision == "bf16"
    structure = find_structure(module, dataset.image_shape)
    if isinstance(structure, Structure):
        return ConvNetStudent(module, structure, bf16=bf16)
    return SingleNetwork(module.to(dataset.test_labels.device), bf16=bf16)


def _make(dataset: DataSet, protocol: Protocol) -> nn.Module:
    return make_network(
        protocol.model, image_shape=dataset.image_shape, classes=len(dataset.classes)
    )


def _fresh(dataset: DataSet, protocol: Protocol, what: str, members: list[int]) -> Tensor:
    """Initial weights [S,P] of some of the networks."""
    make = partial(_make, dataset, protocol)
    return torch.stack([initial_weights(make, protocol.seed, f"{what} init", m) for m in members])


def trained_on(
    network: Network,
    theta: Tensor,
    examples: Examples,
    lr: float | list[float],
    protocol: Protocol,
    what: str,
    members: list[int],
    after_step: Callable[[], None],
    validate: Callable[[int, Tensor, Tensor | None], None] | None = None,
) -> Tensor:
    """Weights [S,P] of some of the networks, trained side by side by the protocol."""
    lrs = [lr[m] for m in members] if isinstance(lr, list) else [lr] * len(members)
    recipe = protocol.recipe(examples, lrs)
    with own_draws(examples.images.device, protocol.seed, what, members[0]):
        return train(
            network,
            theta.to(examples.images.device),
            examples,
            recipe,
            seed=protocol.seed,
            what=what,
            members=members,
            after_step=after_step,
            after_epoch=validate if protocol.validations else None,
        )


@contextmanager
def own_draws(device: torch.device, seed: int, what: str, member: int) -> Iterator[None]:
    """Torch's global generators seeded by a network's number, and afterwards as they were.

    A single network may draw as it computes: its draws, too, depend on its number alone.
    """
    seed = torch_seed(seed, f"{what} forward", member)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _scores(theta: Tensor, network: Network, dataset: DataSet) -> Scores:
    test = accuracy(network, theta, dataset.test_images, dataset.test_labels)
    if not dataset.held_out:
        return Scores(test, None)
    return Scores(test, accuracy(network, theta, dataset.held_out_images, dataset.held_out_labels))


def evaluate_distilled(
    dataset: DataSet,
    synthetic: Synthetic,
    protocol: Protocol,
    desc: str = "distilled set",
    kept: Kept | None = None,
    first: Synthetic | None = None,
    start: Tensor | None = None,
) -> Scores:
    """Accuracy of networks trained on the distilled set at the protocol's learning rate for it.

    With ``first`` the networks have been trained on that set before, as FTD's released evaluation
    of its averaged images has it; with ``start`` they begin with those weights [networks,P].
    """
    lr = protocol.rate(float(synthetic.lr.detach()))
    before = None if first is None else examples_of(first)
    return evaluate(
        dataset,
        examples_of(synthetic),
        lr,
        protocol,
        desc=desc,
        kept=kept,
        before=before,
        start=start,
    )


def examples_of(synthetic: Synthetic) -> Examples:
    """A set to train on, as it is."""
    whole = synthetic.parametrisation.whole(synthetic.images.detach(), synthetic.targets.detach())
    images, labels, parametrisation = whole
    return Examples(images, labels, parametrisation=parametrisation)


def evaluate_random(
    dataset: DataSet,
    ipc: int,
    lrs: tuple[float, float],
    protocol: Protocol,
    kept: Kept | None = None,
) -> tuple[Scores, float]:
    """The baseline: as many random real images, another draw for each network.

    Returns:
        Scores at the learning rate that is better on test images, and that rate.
    """
    rows = torch.stack(
        [
            real_rows(dataset, ipc, KeyedChoices(torch_seed(protocol.seed, "random draw", draw)))
            for draw in range(protocol.networks)
        ]
    )
    examples = Examples(dataset.train_images[rows], dataset.train_labels[rows], shared=False)
    tries = [
        (
            evaluate(
                dataset,
                examples,
                lr,
                protocol,
                desc=f"random real images, lr {lr:.4g}",
                kept=kept,
            ),
            lr,
        )
        for lr in lrs
    ]
    return max(tries, key=lambda scores_lr: float(scores_lr[0].test.mean()))


def evaluate_real(
    dataset: DataSet, protocol: Protocol, steps: int, kept: Kept | None = None
) -> Scores:
    """Accuracy of networks trained on all real images at lr 0.01 for ``steps`` steps.

    Same optimiser and schedule; the number of epochs follows from the steps, as 1001 epochs over
    the real data would be out of proportion.
    """
    examples = Examples(dataset.train_images, dataset.train_labels)
    per_epoch = -(-examples.count // min(protocol.batch_train, examples.count))
    shorter = replace(protocol, epochs=max(1, steps // per_epoch))
    return evaluate(dataset, examples, REAL_LR, shorter, desc="all real images", kept=kept)
