"""The synthetic set: how it starts, how it is kept."""

import pytest
import torch
from torch import nn

from fastmtt import FastmttError, synthetic
from fastmtt.choices import KeyedChoices
from fastmtt.data import load
from fastmtt.student import initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, train


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


def test_a_real_start_takes_ipc_training_images_of_each_class_in_order(digits):
    found = synthetic.start(digits, 3, "real", 0.02, KeyedChoices(0))
    assert found.labels.tolist() == [c for c in range(10) for _ in range(3)]
    flat = digits.train_images.flatten(1)
    for image, label in zip(found.images.flatten(1), found.labels, strict=True):
        rows = (flat == image).all(1).nonzero().flatten()
        assert len(rows) > 0 and label in digits.train_labels[rows]
    assert len(found.images.flatten(1).unique(dim=0)) == 30
    assert float(found.lr) == pytest.approx(0.02)


def test_a_noise_start_is_standard_normal(digits):
    found = synthetic.start(digits, 20, "noise", 0.02, KeyedChoices(0))
    assert found.images.shape == (200, 1, 8, 8)
    assert abs(float(found.images.mean())) < 0.05 and abs(float(found.images.std()) - 1) < 0.05


def test_more_images_than_a_class_has_are_refused(digits):
    with pytest.raises(FastmttError, match="lower ipc"):
        synthetic.start(digits, 1000, "real", 0.02, KeyedChoices(0))


def test_save_and_load_give_the_same_bits(digits, tmp_path):
    found = synthetic.start(digits, 1, "real", 0.02, KeyedChoices(0))
    found.save(tmp_path / "set.safetensors", {"network": "ConvNet"})
    again, meta = synthetic.load_synthetic(tmp_path / "set.safetensors")
    assert all(
        torch.equal(a, b)
        for a, b in [
            (found.images, again.images),
            (found.labels, again.labels),
            (found.lr, again.lr),
        ]
    )
    assert meta["network"] == "ConvNet"


def test_a_damaged_file_is_refused_by_name(digits, tmp_path):
    path = tmp_path / "set.safetensors"
    synthetic.start(digits, 1, "real", 0.02, KeyedChoices(0)).save(path, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FastmttError, match=r"set\.safetensors"):
        synthetic.load_synthetic(path)


def soft_set(classes: int = 10) -> synthetic.Synthetic:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(20, 1, 8, 8, generator=random)
    logits = 3 * torch.randn(20, classes, generator=random)
    return synthetic.Synthetic(images, logits, torch.tensor(0.02))


def test_soft_labels_are_kept_as_logits_and_used_as_probabilities(tmp_path):
    found = soft_set()
    found.save(tmp_path / "set.safetensors", {})
    again, _ = synthetic.load_synthetic(tmp_path / "set.safetensors")
    assert torch.equal(again.labels, found.labels)
    assert torch.allclose(again.targets.sum(1), torch.ones(20))
    assert torch.equal(again.targets.argmax(1), found.labels.argmax(1))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (torch.zeros(19, 10), "[19, 10]"),
        (torch.zeros(20), "[n,classes]"),
        (torch.zeros(20, 10).double(), "torch.float64"),
        (torch.full((20, 10), float("nan")), "finite float32 logits"),
    ],
)
def test_soft_labels_that_are_none_are_refused(tmp_path, labels, words):
    found = soft_set()
    found.labels = labels
    found.save(tmp_path / "set.safetensors", {})
    with pytest.raises(FastmttError) as stop:
        synthetic.load_synthetic(tmp_path / "set.safetensors")
    assert words in str(stop.value)


def test_students_train_on_soft_labels_by_datms_loss():
    """-(1/B) sum of softmax(label) log_softmax(output), two students, against autograd."""
    found, members = soft_set(), [0, 1]

    def make() -> nn.Module:
        return make_network("ConvNetD1W8", image_shape=(1, 8, 8), classes=10)

    theta = torch.stack([initial_weights(make, 0, "x init", m) for m in members])
    recipe = Recipe(epochs=3, batch_size=20, lr=0.1)
    student, examples = make_student(make(), (1, 8, 8)), Examples(found.images, found.targets)
    trained = train(student, theta, examples, recipe, seed=0, what="x", members=members)
    for row, first in zip(trained, theta, strict=True):
        net = make()
        nn.utils.vector_to_parameters(first.clone(), net.parameters())
        for _ in range(3):
            log_p = net(found.images).log_softmax(1)
            loss = -(found.labels.softmax(1) * log_p).sum() / len(log_p)
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        wanted = nn.utils.parameters_to_vector(net.parameters())
        torch.testing.assert_close(row, wanted, rtol=1e-4, atol=1e-6)
        assert (row - first).norm() > 0.01
