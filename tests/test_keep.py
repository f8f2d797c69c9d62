"""PAD's choice of weights: which count is a matter of whole numbers, by hand."""

import pytest
import torch

from fastmtt.keep import but_first, but_smallest
from fastmtt.student.zoo import make_network

P = 320_010  # of the ConvNet for CIFAR-10


def test_the_smallest_squares_are_dropped():
    squares = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert sorted(but_smallest(0.4)(squares).tolist()) == [0, 2, 4]
    assert sorted(but_smallest(0.59)(squares).tolist()) == [0, 2, 4], "int(2.95) = 2"
    assert sorted(but_smallest(0.0)(squares).tolist()) == [0, 1, 2, 3, 4]


def test_of_equal_squares_as_many_are_dropped_as_of_others():
    kept = but_smallest(0.5)(torch.zeros(6))
    assert kept.unique().numel() == 3


@pytest.mark.parametrize("ratio", [0.25, 0.3, 0.5, 0.9])
def test_the_loss_filter_keeps_the_largest_of_a_convnet(ratio):
    squares = torch.rand(P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = but_smallest(ratio)(squares)
    assert kept.unique().numel() == len(kept) == P - int(ratio * P)
    dropped = torch.ones(P, dtype=torch.bool).index_fill_(0, kept, False)
    assert squares[kept].min() > squares[dropped].max()


@pytest.mark.parametrize(
    ("ratio", "start", "inside"),
    [(0.5, 160_005, "features.8.weight"), (0.25, 80_002, "features.4.weight"), (0.0, 0, None)],
)
def test_the_depth_filter_keeps_a_suffix_that_starts_inside_a_layer(ratio, start, inside):
    mask = but_first(ratio, P)
    assert mask.nonzero().flatten().tolist() == [*range(start, P)]
    network = make_network("ConvNet", image_shape=(3, 32, 32), classes=10)
    offset, cut = 0, None
    for name, parameter in network.named_parameters():
        if offset < start < offset + parameter.numel():
            cut = name
        offset += parameter.numel()
    assert offset == P and cut == inside
