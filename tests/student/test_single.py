"""Networks that are trained alone against torch's optimiser and modules as they are."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from tolerances import FORMULA
from torch import nn

from fastmtt import DSA, draws, evaluation
from fastmtt.data import load
from fastmtt.protocol import Protocol
from fastmtt.student import flatten_parameters
from fastmtt.student.single import SingleNetwork
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import Synthetic
from fastmtt.training import Examples, Recipe, accuracy, train

SHAPE = (1, 8, 8)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_network("ConvNetD2W8BN", image_shape=SHAPE, classes=3).double()


def by_torch(net, examples, recipe):
    """The recipe with torch.optim.SGD on the module itself."""

    def optimiser(lr):
        return torch.optim.SGD(net.parameters(), lr, momentum=0.9, weight_decay=5e-4)

    sgd = optimiser(recipe.lr)
    for epoch in range(recipe.epochs):
        order = draws.stream(7, "x shuffle", 2, epoch).permutation(examples.count)
        for rows in torch.from_numpy(order).split(recipe.batch_size):
            sgd.zero_grad()
            F.cross_entropy(net(examples.images[rows]), examples.labels[rows]).backward()
            sgd.step()
        if epoch == recipe.decay_after:
            sgd = optimiser(0.1 * recipe.lr)
    return net


@pytest.mark.parametrize("soft", [False, True])
def test_a_network_with_batch_norm_is_trained_and_tested_as_torch_does(soft):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(11, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (11,), generator=generator)
    if soft:
        labels = torch.rand(11, 3, generator=generator, dtype=torch.float64).softmax(-1)
    examples = Examples(images, labels)
    recipe = Recipe(5, 4, 0.1, momentum=0.9, weight_decay=5e-4, decay_after=2)
    single, start = SingleNetwork(network()), flatten_parameters(network())[None]
    theta = train(single, start, examples, recipe, seed=7, what="x", members=[2])
    want = by_torch(network(), examples, recipe)
    assert_close(theta[0], flatten_parameters(want), FORMULA)
    buffers = dict(single.module.named_buffers())
    for name, buffer in want.named_buffers():
        assert_close(buffers[name].double(), buffer.double(), FORMULA, name)
    tests = torch.randn(40, *SHAPE, generator=generator, dtype=torch.float64)
    assert_close(single.logits(theta, tests[None])[0], want.eval()(tests), FORMULA)
    guessed = want(tests).argmax(1)
    assert accuracy(single, theta, tests, guessed).tolist() == [1.0]
    assert accuracy(single, theta, tests, (guessed + 1) % 3).tolist() == [0.0]


class WithDropout(nn.Module):
    """A network that draws in training mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(F.dropout(x.flatten(1), 0.5, self.training))


def test_draws_depend_on_the_networks_number_alone(monkeypatch):
    digits = load("digits", "data", progress=False)
    monkeypatch.setattr(evaluation, "_make", lambda *given: WithDropout())
    distilled = Synthetic(digits.train_images[:20], digits.train_labels[:20], torch.tensor(0.1))
    protocol = Protocol("with dropout", 2, 20, 10, DSA("crop"), 3)
    kept: dict[str, evaluation.Scores] = {}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    whole = evaluation.evaluate_distilled(digits, distilled, protocol, kept=kept)
    kept.pop(next(iter(kept)))
    torch.manual_seed(2)
    again = evaluation.evaluate_distilled(digits, distilled, protocol, kept=kept)
    assert torch.equal(again.test, whole.test) and whole.test[0] != whole.test[1]
    assert float(whole.test.min()) > 0.3 and len(kept) == 2
    torch.set_rng_state(state)
