"""What callers get wrong: either call answers with one sentence that says what to do."""

import pytest
import torch
from torch import nn

import fastmtt
from fastmtt.compat import ReparamModule
from fastmtt.student.zoo import ConvNet

STEPS = 2


class Given:
    """Everything right, for a test to put one thing wrong; a loss by either call."""

    def __init__(self):
        self.student = ConvNet((3, 8, 8), 3, depth=1, width=4)
        self.theta = torch.cat([p.detach().reshape(-1) for p in self.student.parameters()])
        self.images = torch.randn(4, 3, 8, 8).requires_grad_()
        self.labels = torch.tensor([0, 1, 2, 0])
        self.lr = torch.tensor(0.1, requires_grad=True)

    def matched(self):
        goal = self.theta + 0.1 if isinstance(self.theta, torch.Tensor) else self.theta
        given = self.student, self.theta, goal, self.images, self.labels, self.lr
        return fastmtt.match_trajectory(*given, steps=STEPS)

    def unrolled(self):
        batches = [(self.images, self.labels)] * STEPS
        theta = fastmtt.unroll_sgd(self.student, self.theta, batches, self.lr)
        return theta.square().sum()


@pytest.fixture
def given():
    return Given()


@pytest.fixture(params=["matched", "unrolled"])
def loss(request, given):
    """The call, to be made once something is wrong."""
    return getattr(given, request.param)


def sentence(error):
    """The message, if it is one: a line that could stand alone."""
    text = str(error.value)
    assert "\n" not in text and 20 < len(text) < 300
    return text


def test_nothing_wrong(given, loss):
    loss().backward()
    assert given.images.grad.norm() > 0 and given.lr.grad != 0


def test_weights_of_the_wrong_length(given, loss):
    size, given.theta = len(given.theta), given.theta[:-1]
    with pytest.raises(ValueError) as error:
        loss()
    said = sentence(error)
    assert (
        f"the student has {size} parameters" in said and f"got torch.float32 [{size - 1}]" in said
    )


def test_flat_param_of_the_wrong_length(given):
    with pytest.raises(ValueError) as error:
        ReparamModule(given.student)(given.images, flat_param=given.theta[:-1])
    size = len(given.theta)
    assert sentence(error) == f"flat_param must hold {size} values, got {size - 1}"


def test_a_snapshot_of_a_published_buffer_as_it_is(given, loss):
    given.theta = [p.detach() for p in given.student.parameters()]
    with pytest.raises(ValueError, match="flat tensor or a dict by parameter name, got list"):
        loss()
    given.theta = torch.cat([p.reshape(-1) for p in given.theta])  # what the sentence advises
    assert loss().isfinite()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(4, dtype=torch.int32), "must be int64 or floating point, got torch.int32"),
        (torch.zeros(4, 3).bool(), "must be int64 or floating point, got torch.bool"),
        (torch.zeros(4), "probabilities of .* must have 3 columns, one a class, got shape"),
        (torch.zeros(4, 3, dtype=torch.int64), "one-hot labels are floating point"),
        (torch.zeros(4, 3).double(), "labels of .* are torch.float64, theta is torch.float32"),
        ([0, 1, 2, 0], "labels of .* must be a tensor, got list"),
        (torch.tensor([0, 1, 2, 3]), "must lie in 0..2, got 0 to 3"),
    ],
)
def test_labels_of_another_type(given, loss, labels, words):
    given.labels = labels
    with pytest.raises(ValueError, match=words) as error:
        loss()
    sentence(error)


def test_images_that_are_no_tensor(given, loss):
    given.images = given.images.tolist()
    with pytest.raises(ValueError, match="images of .* must be a tensor, got list"):
        loss()


def test_a_student_with_batch_norm(given, loss):
    given.student = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    given.theta = torch.cat([p.detach().reshape(-1) for p in given.student.parameters()])
    with pytest.raises(ValueError) as error:
        loss()
    said = sentence(error)
    assert "1 is BatchNorm2d in training mode" in said and "GroupNorm" in said and ".eval()" in said
    given.student.eval()  # what the sentence advises
    assert loss().isfinite()


def test_create_graph(given, loss):
    with pytest.raises(RuntimeError, match="create_graph=True .*compat.ReparamModule") as error:
        torch.autograd.grad(loss(), given.images, create_graph=True)
    sentence(error)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_tensors_on_two_devices(given, loss, name):
    setattr(given, name, getattr(given, name).to("meta"))
    with pytest.raises(ValueError, match="on meta, theta is on cpu: use one device") as error:
        loss()
    sentence(error)


def test_start_and_target_on_two_devices(given):
    goal = given.theta.to("meta")
    rest = given.images, given.labels, given.lr
    with pytest.raises(ValueError, match="must have one shape, dtype and device") as error:
        fastmtt.match_trajectory(given.student, given.theta, goal, *rest, steps=STEPS)
    sentence(error)


@pytest.mark.parametrize("name", ["images", "lr"])
def test_inputs_edited_between_forward_and_backward(given, loss, name):
    value = loss()
    with torch.no_grad():
        getattr(given, name).mul_(0.9)
    with pytest.raises(RuntimeError, match="changed in place between.* after backward") as error:
        value.backward()
    sentence(error)


def test_labels_edited_between_forward_and_backward(given, loss):
    value = loss()
    given.labels[0] = 1
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        value.backward()
