"""What experts say of images: start images, soft labels, and which snapshot is asked."""

import dataclasses
from types import SimpleNamespace

import in_memory
import pytest
import straight_line
import torch
from compare import assert_close
from tolerances import FORMULA

from fastmtt import FastmttError
from fastmtt.choices import KeyedChoices
from fastmtt.labels import Labeller, correct_rows, logits, soft_labels
from fastmtt.student import make_student

MODEL = "ConvNetD1W8"


class Told:
    """A labeller whose experts' answers are written down: logits [row, class] by expert."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    @property
    def experts(self):
        return range(len(self.answers))

    def logits(self, expert, images):
        self.asked.append(expert)
        return self.answers[expert][images.flatten().long()]


def numbered(labels):
    """A data set whose image of row i is the number i."""
    rows = torch.arange(len(labels), dtype=torch.float64).view(-1, 1, 1, 1)
    names = ("even", "odd")
    return SimpleNamespace(train_images=rows, train_labels=torch.tensor(labels), classes=names)


def answers(classes):
    return torch.eye(2, dtype=torch.float64)[torch.tensor(classes)]


class InOrder(KeyedChoices):
    """Looks at a class's rows from the first to the last, or as `order` has it."""

    def __init__(self, order=slice(None)):
        super().__init__(0)
        self.order = order

    def pick(self, label, rows, count):
        return rows[self.order][:count].copy()


DATA = numbered([0, 1] * 4)  # rows 0, 2, 4, 6 are of class 0


def test_images_the_first_expert_gets_right_are_taken_in_the_order_they_are_looked_at():
    told = Told(answers([0, 1, 1, 1, 0, 0, 0, 1]), answers([0, 1] * 4))
    assert correct_rows(DATA, 2, InOrder(), told).tolist() == [0, 4, 1, 3]
    backwards = InOrder(slice(None, None, -1))
    assert correct_rows(DATA, 2, backwards, told).tolist() == [6, 4, 7, 3]
    assert set(told.asked) == {0}, "nobody else need be asked"


def test_a_class_that_is_exhausted_falls_to_the_next_expert():
    first, second = answers([1, 1, 1, 1, 0, 1, 1, 1]), answers([0, 0, 1, 0, 0, 0, 0, 0])
    told = Told(first, second)
    # class 0: the first expert is right about 4 alone, the second about 0 and 6 too
    assert correct_rows(DATA, 3, InOrder(), told).tolist() == [4, 0, 6, 1, 3, 5]


def test_a_class_of_more_than_a_batch_is_gone_through():
    data = numbered([0, 1] * 400)
    late = torch.zeros(800, dtype=torch.int64)
    late[::2] = 1
    late[1::2] = 1
    late[700] = 0
    assert correct_rows(data, 1, InOrder(), Told(answers(late.tolist()))).tolist() == [700, 1]


def test_too_few_right_answers_are_said():
    told = Told(answers([0, 1, 1, 1, 1, 1, 1, 1]), answers([0, 1, 0, 1, 1, 1, 1, 1]))
    with pytest.raises(FastmttError) as refused:
        correct_rows(DATA, 3, InOrder(), told)
    sentence = str(refused.value)
    assert "the 2 experts get 2 images of class 'even' right, wanted ipc 3" in sentence
    assert "lower ipc" in sentence


def test_soft_labels_average_those_who_are_right_and_all_where_nobody_is():
    images, labels = torch.arange(3, dtype=torch.float64).view(-1, 1, 1, 1), torch.zeros(3).long()
    told = Told(
        torch.tensor([[2.0, 1.0], [8.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
        torch.tensor([[4.0, 1.0], [0.0, 4.0], [1.0, 3.0]], dtype=torch.float64),
        torch.tensor([[0.0, 9.0], [6.0, 5.0], [2.0, 5.0]], dtype=torch.float64),
    )
    found = soft_labels(images, labels, told)
    assert found.tolist() == [[3.0, 1.0], [7.0, 2.5], [1.0, 3.0]]


@pytest.fixture(scope="module")
def memory():
    """Two experts and what asks them."""
    dataset = in_memory.make_dataset()
    store = in_memory.Experts(in_memory.train_experts(MODEL, dataset, epochs=3, rates=(0.1, 0.2)))
    student = make_student(in_memory.network_of(MODEL), in_memory.SHAPE)
    return dataset, Labeller(student, store, [0, 1])


@pytest.mark.parametrize(("snapshot", "row"), [(-1, 3), (-4, 0), (0, 0), (2, 2), (3, 3)])
@pytest.mark.parametrize("expert", [0, 1])
def test_the_snapshot_that_is_asked(memory, snapshot, row, expert):
    dataset, labeller = memory
    asked = dataclasses.replace(labeller, snapshot=snapshot)
    theta = labeller.store.trajectories[expert][row]
    want = straight_line.logits(in_memory.network_of(MODEL), theta, dataset.train_images)
    assert_close(asked.logits(expert, dataset.train_images), want, FORMULA)


@pytest.mark.parametrize("snapshot", [4, -5])
def test_a_snapshot_no_expert_has_is_refused(memory, snapshot):
    dataset, labeller = memory
    with pytest.raises(FastmttError, match="snapshots 0 to 3"):
        dataclasses.replace(labeller, snapshot=snapshot).logits(0, dataset.train_images)


def test_the_first_expert_alone_is_asked_as_it_ended(memory):
    _, labeller = memory
    first = dataclasses.replace(labeller, snapshot=1).first()
    assert list(first.experts) == [0] and first.snapshot == -1


def test_logits_of_many_images_are_those_of_each(memory):
    dataset, labeller = memory
    theta = labeller.store.trajectories[0][-1]
    many = dataset.train_images.repeat(13, 1, 1, 1)
    assert len(many) > 512
    want = logits(labeller.student, theta, dataset.train_images).repeat(13, 1)
    assert_close(logits(labeller.student, theta, many), want, FORMULA)
