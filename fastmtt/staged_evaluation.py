"""How good a staged set is: networks trained on each stage's images after one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fastmtt.data import DataSet
from fastmtt.evaluation import (
    Kept,
    Scores,
    epoch_steps,
    examples_of,
    in_groups,
    own_draws,
)
from fastmtt.protocol import Protocol
from fastmtt.synthetic import Synthetic
from fastmtt.training import Network, accuracy, train


def evaluate_stages(
    dataset: DataSet,
    sets: Sequence[Synthetic],
    protocol: Protocol,
    *,
    desc: str = "distilled stages",
    kept: Kept | None = None,
    start: Tensor | None = None,
) -> Scores:
    """Accuracy of networks trained on the union of stages 1 to i, for i from first to last.

    Each stage is trained on by the protocol, at its own learning rate where the protocol takes it;
    the momentum goes on through all of them (PDD, arXiv 2310.06982).

    Args:
        dataset: gives the images to test on.
        sets: the union up to each stage, in order.
        protocol: how to train.
        desc: shown with the progress.
        kept: as for ``evaluation.evaluate``.
        start: initial weights [networks,P] in place of fresh ones.
    """
    unions = [examples_of(one) for one in sets]
    rates = [protocol.rate(float(one.lr.detach())) for one in sets]

    def train_all(
        network: Network, theta: Tensor, group: Tensor, after_step: Callable[[], None]
    ) -> tuple[Tensor, list[list[Tensor]]]:
        members, velocity = group.tolist(), None
        tested: list[list[Tensor]] = []

        def after_epoch(done: int, now: Tensor, momentum: Tensor | None) -> None:
            nonlocal velocity
            velocity = momentum
            ends = done == protocol.length and len(tested) < len(unions)
            if done in protocol.validations or (protocol.validations and ends):
                tested[-1].append(accuracy(network, now, dataset.test_images, dataset.test_labels))

        for number, (examples, lr) in enumerate(zip(unions, rates, strict=True)):
            what = f"evaluation stage {number}" if number else "evaluation"
            device = examples.images.device
            tested.append([])
            with own_draws(device, protocol.seed, what, members[0]):
                theta = train(
                    network,
                    theta.to(device),
                    examples,
                    protocol.stage_recipe(number, examples, [lr] * len(members)),
                    seed=protocol.seed,
                    what=what,
                    members=members,
                    velocity=velocity,
                    after_epoch=after_epoch,
                    after_step=after_step,
                )
        return theta, tested

    return in_groups(
        dataset,
        protocol,
        train_all,
        examples=unions[-1],
        steps=sum(epoch_steps(union, protocol) for union in unions) * protocol.length,
        what="evaluation",
        desc=desc,
        settings=f"lr {rates!r}, {'fresh' if start is None else 'given'} weights",
        kept=kept,
        start=start,
    )
