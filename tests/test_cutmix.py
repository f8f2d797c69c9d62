"""CutMix: a box worked out by hand, and what its draws may be."""

import numpy as np
import torch

from fastmtt import draws
from fastmtt.cutmix import CutMix


def test_a_box_and_its_share_of_the_label_come_from_the_partner():
    x = torch.arange(3.0)[None, :, None, None, None].expand(1, 3, 2, 4, 5).contiguous()
    drawn = torch.tensor(
        [[2, 0, 1, 1, 3, 0, 5]]
    )  # partners of images 0, 1, 2; rows 1 and 2, all across
    mixed, labels = CutMix(3).apply(x, torch.tensor([[0, 1, 2]]), drawn)
    for image, partner in enumerate((2, 0, 1)):
        rows = torch.tensor([image, partner, partner, image]).float()
        assert torch.equal(mixed[0, image], rows[None, :, None].expand(2, 4, 5))
    want = torch.tensor([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    assert torch.equal(labels[0], want)


def test_students_have_boxes_of_their_own_and_soft_labels_mix_as_hard_ones():
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 1, 4, 4, generator=make), torch.tensor([[0, 1], [1, 0]])
    drawn = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 0, 0, 2, 0, 2]])
    mixed, labels = CutMix(2).apply(x, y, drawn)
    assert torch.equal(mixed[0], x[0])  # an empty box
    assert torch.equal(mixed[1, 0, 0, :2, :2], x[1, 1, 0, :2, :2])
    assert torch.equal(mixed[1, 0, 0, 2:], x[1, 0, 0, 2:])
    assert torch.equal(labels, torch.tensor([[[1.0, 0], [0, 1]], [[0.25, 0.75], [0.75, 0.25]]]))
    soft = CutMix(2).apply(x, torch.eye(2)[y], drawn)
    assert torch.equal(soft[0], mixed) and torch.equal(soft[1], labels)


def test_draws_are_permutations_and_boxes_within_the_image_by_key_and_chance():
    cutmix, shape = CutMix(3, chance=0.5), (3, 8, 6)
    rows = [cutmix.draw(draws.stream(1, "cutmix", i), 5, shape)[0] for i in range(400)]
    assert torch.equal(rows[7], cutmix.draw(draws.stream(1, "cutmix", 7), 5, shape)[0])
    for row in rows:
        assert sorted(row[:5].tolist()) == [0, 1, 2, 3, 4]
        top, bottom, left, right = row[5:].tolist()
        assert 0 <= top <= bottom <= 8 and 0 <= left <= right <= 6
    mixed = np.mean([row[:5].tolist() != [0, 1, 2, 3, 4] for row in rows])
    assert abs(mixed - 0.5) < 0.1  # four deviations of 400 throws
    never = CutMix(3, chance=0.0).draw(draws.stream(1, "cutmix", 0), 5, shape)[0]
    assert never.tolist() == [0, 1, 2, 3, 4, 0, 0, 0, 0]
