"""Randomly pruned experts: masks by key, against SGD on masked weights, and what is stored."""

import pytest
import torch
from compare import assert_close
from tolerances import FORMULA

from fastmtt import buffer
from fastmtt.config import parse
from fastmtt.experts.pruning import Pruned, random_masks
from fastmtt.experts.store import TrajectoryStore
from fastmtt.student import initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, train

SHAPE = (1, 8, 8)


def make():
    return make_network("ConvNetD2W8", image_shape=SHAPE, classes=3)


def by_tensor(student, flat):
    return dict(
        zip(
            student.names,
            flat.split([s.numel() for s in map(torch.Size, student.shapes)]),
            strict=True,
        )
    )


def test_a_share_of_each_convolution_is_pruned_by_key():
    student = make_student(make(), SHAPE)
    masks = random_masks(student, 0.3, 5, [2, 7])
    assert torch.equal(random_masks(student, 0.3, 5, [7])[0], masks[1]), "by member"
    assert not torch.equal(masks[0], masks[1])
    for name, kept in by_tensor(student, masks[0]).items():
        gone = len(kept) - int(kept.sum())
        convolution = name in ("features.0.weight", "features.4.weight")
        assert gone == (round(0.3 * len(kept)) if convolution else 0), name


def test_pruned_weights_stay_zero_and_the_rest_is_masked_sgd():
    student, members = make_student(make(), SHAPE), [0, 3]
    masks = random_masks(student, 0.5, 0, members)
    theta = torch.stack([initial_weights(make, 0, "x", m) for m in members]).double() * masks
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.arange(8) % 3
    recipe = Recipe(4, 8, 0.2, momentum=0.9, weight_decay=0.01)
    found = train(
        *(Pruned(student, masks), theta, Examples(images, labels), recipe),
        **dict(seed=0, what="x", members=members),
    )
    assert (found[~masks] == 0).all()
    net = make().double()
    for row, weights, mask in zip(found, theta, masks, strict=True):
        leaf, velocity = weights.clone().requires_grad_(), 0.0
        for _ in range(4):
            torch.nn.utils.vector_to_parameters(leaf * mask, net.parameters())
            loss = torch.nn.functional.cross_entropy(net(images), labels)
            parts = torch.autograd.grad(loss, list(net.parameters()))
            gradient = torch.cat([p.flatten() for p in parts]) * mask + 0.01 * leaf.detach()
            velocity = 0.9 * velocity + gradient
            leaf = leaf.detach() - 0.2 * velocity
        assert_close(row, leaf, FORMULA)


@pytest.mark.filterwarnings("ignore:sparse-ratio is taken", "ignore:use-random-pruning is ignored")
def test_the_published_flags_fill_a_folder_of_their_own(tmp_path):
    flags = (
        f"--dataset digits --model ConvNetD1W8 --num_experts 1 --train_epochs 2 --threads 1 "
        f"--buffer_path {tmp_path} --use-random-pruning --sparse-ratio 0.25"
    ).split()
    assert parse("buffer", flags).sparse_ratio == 0.25
    buffer.main(flags)
    store = TrajectoryStore(tmp_path / "digits_random_pruning_0.25" / "ConvNetD1W8")
    assert store.meta(0)["recipe"]["sparse_ratio"] == 0.25
    first, last = store.segment(0, 0, 2)
    weights = slice(0, 8 * 9)  # the convolution's
    assert (first[weights] == 0).sum() == 18
    assert torch.equal(first[weights] == 0, last[weights] == 0)
    assert (first != last).sum() > 100
