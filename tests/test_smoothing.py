"""FTD's average of the images, by hand."""

import torch

from fastmtt.smoothing import MovingAverage


def test_the_average_is_a_decaying_sum_without_correction_of_its_start():
    images = torch.tensor([4.0, -8.0])
    average = MovingAverage(images, 0.75)
    assert average.shadow.tolist() == [4.0, -8.0]
    images.copy_(torch.tensor([8.0, 0.0]))
    assert average.shadow.tolist() == [4.0, -8.0], "a copy, not the images themselves"
    average.update(images)
    assert average.shadow.tolist() == [5.0, -6.0]
    average.update(torch.tensor([1.0, 2.0]))
    assert average.shadow.tolist() == [4.0, -4.0]


def test_without_decay_it_is_the_images():
    average = MovingAverage(torch.zeros(2), 0.0)
    average.update(torch.tensor([3.0, 7.0]))
    assert average.shadow.tolist() == [3.0, 7.0]


def test_it_leaves_no_graph_and_keeps_the_dtype():
    images = torch.ones(2, dtype=torch.float64, requires_grad=True)
    average = MovingAverage(images, 0.5)
    average.update(2 * images)
    assert not average.shadow.requires_grad and average.shadow.dtype == torch.float64
