"""GSAM's experts against the formulas of its authors, spelt parameter by parameter."""

import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from torch import nn

from fastmtt import DSA, buffer, draws, ops
from fastmtt.config import parse
from fastmtt.device import load_data
from fastmtt.experts.store import TrajectoryStore
from fastmtt.student import flatten_parameters, initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, Sharpness, train

SHAPE, CLASSES, SEED = (1, 8, 8), 3, 7
MEMBERS = [0, 5]
ROUNDING = 1e-9  # three epochs in float64: as test_training allows plain SGD


def make(network="ConvNetD2W8"):
    return make_network(network, image_shape=SHAPE, classes=CLASSES)


def some_examples(dtype=torch.float64, n=11):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, *SHAPE, generator=generator, dtype=dtype)
    return Examples(images, torch.randint(CLASSES, (n,), generator=generator))


def start(members, make=make):
    return torch.stack([initial_weights(make, SEED, "x init", m) for m in members])


def trained(recipe, theta, members=MEMBERS, make=make, n=11):
    students, examples = make_student(make(), SHAPE), some_examples(theta.dtype, n)
    return train(students, theta, examples, recipe, seed=SEED, what="x", members=members)


def norm(tensors):
    return torch.sqrt(sum((t * t).sum() for t in tensors))


def step(net, sgd, x, y, sharpness):
    """One step as published: climb, gradient, back, combine, the base optimiser."""
    weights = list(net.parameters())
    rho, alpha = sharpness.rho, sharpness.alpha
    g = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
    with torch.no_grad():
        if sharpness.adaptive:
            length = norm([w.abs() * d for w, d in zip(weights, g, strict=True)])
            climb = [rho * (w * w * d) / (length + 1e-12) for w, d in zip(weights, g, strict=True)]
        else:
            climb = [rho * d / (norm(g) + 1e-12) for d in g]
        for w, e in zip(weights, climb, strict=True):
            w.add_(e)
    there = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
    with torch.no_grad():
        inner = sum((a * b).sum() for a, b in zip(g, there, strict=True))
        cosine = inner / (norm(there) * norm(g) + 1e-12)
        for w, e, a, b in zip(weights, climb, g, there, strict=True):
            w.sub_(e)
            vertical = a - cosine * norm(g) * b / (norm(there) + 1e-12)
            w.grad = b - alpha * vertical
    sgd.step()


def by_torch(theta, examples, recipe, member, what="x", net=None):
    """The recipe over torch.optim.SGD; shuffles and augmentation are data, drawn by their key."""
    net = (net or make()).double()
    nn.utils.vector_to_parameters(theta.double(), net.parameters())
    sgd = torch.optim.SGD(
        net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    for epoch in range(recipe.epochs):
        order = draws.stream(SEED, f"{what} shuffle", member, epoch).permutation(examples.count)
        random = draws.stream(SEED, f"{what} dsa", member, epoch)
        for rows in torch.from_numpy(order).split(recipe.batch_size):
            x = examples.images[rows]
            if recipe.augment is not None:
                drawn = recipe.augment.draw(random, len(rows), SHAPE)
                x = recipe.augment.apply(x[None], DSA.stack([drawn]))[0]
            step(net, sgd, x, examples.labels[rows], recipe.sharpness)
    return flatten_parameters(net)


def test_the_climb_by_hand():
    theta, g = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 2.0]])
    # |w| g = (2, -> 2) is 2 sqrt 2 long, w^2 g = (4, 2)
    climbed = ops.gsam_perturb(theta, g, 2.0**0.5, True)
    torch.testing.assert_close(climbed, torch.tensor([[4.0, 0.0]]))
    climbed = ops.gsam_perturb(theta, torch.tensor([[3.0, 4.0]]), 5.0, False)
    torch.testing.assert_close(climbed, torch.tensor([[5.0, 3.0]]))


def test_the_direction_by_hand():
    # of g = (3, 4) the part orthogonal to g' = (5, 0) is (0, 4)
    g, there = torch.tensor([[3.0, 4.0]]), torch.tensor([[5.0, 0.0]])
    direction = ops.gsam_combine(g, there, 0.5)
    torch.testing.assert_close(direction, torch.tensor([[5.0, -2.0]]))


@pytest.mark.parametrize("adaptive", [True, False])
def test_gsam_with_momentum_decay_and_one_augmented_batch_for_both_gradients(adaptive):
    sharpness = Sharpness(0.5, 0.4, adaptive)
    augment = DSA("color_crop_cutout_flip_scale_rotate")
    recipe = Recipe(3, 4, 0.05, 0.9, 0.01, augment=augment, sharpness=sharpness)
    theta = start(MEMBERS).double()
    plain = trained(Recipe(3, 4, 0.05, 0.9, 0.01, augment=augment), theta)
    for row, first, member, other in zip(
        trained(recipe, theta), theta, MEMBERS, plain, strict=True
    ):
        assert_close(row, by_torch(first, some_examples(), recipe, member), ROUNDING)
        assert (row - other).norm() > 0.01 * (row - first).norm()  # GSAM is not SGD here


def test_without_alpha_it_is_adaptive_sam():
    theta = start([3]).double()
    recipe = Recipe(1, 11, 0.1, sharpness=Sharpness(0.5, 0.0))
    net, examples = make().double(), some_examples()
    nn.utils.vector_to_parameters(theta[0], net.parameters())
    weights = list(net.parameters())

    def gradient():
        loss = F.cross_entropy(net(examples.images), examples.labels)
        return torch.autograd.grad(loss, weights)

    g = gradient()
    length = norm([w * d for w, d in zip(weights, g, strict=True)])
    climbed = [w + 0.5 * w * w * d / length for w, d in zip(weights, g, strict=True)]
    nn.utils.vector_to_parameters(torch.cat([c.flatten() for c in climbed]), net.parameters())
    there = torch.cat([d.flatten() for d in gradient()])
    assert_close(trained(recipe, theta, [3])[0], theta[0] - 0.1 * there, ROUNDING)


def test_without_a_radius_it_is_sgd():
    theta = start(MEMBERS).double()
    found = trained(Recipe(3, 4, 0.1, 0.9, sharpness=Sharpness(0.0, 0.4)), theta)
    assert_close(found, trained(Recipe(3, 4, 0.1, 0.9), theta), 1e-12)


@pytest.mark.parametrize(("threads", "n"), [(1, 11), (2, 4)])
def test_students_equal_each_one_alone_to_the_bit(threads, n):
    def wide():
        return make("ConvNetD2W64")  # enough weights that threads share a sum

    recipe = Recipe(1, 4, 0.1, 0.9, augment=DSA("crop_flip"), sharpness=Sharpness(0.5, 0.4))
    members = [2, 9]
    theta = start(members, wide)
    assert theta.shape[1] > 2**15
    torch.set_num_threads(threads)
    try:
        together = trained(recipe, theta, members, wide, n)
        for i, member in enumerate(members):
            alone = trained(recipe, theta[i : i + 1], [member], wide, n)
            assert torch.equal(together[i], alone[0])
    finally:
        torch.set_num_threads(1)


def test_a_flat_loss_divides_by_no_zero():
    """All weights 0: what is left of the gradient is the rounding of 1/3."""
    theta = torch.zeros(1, make_student(make(), SHAPE).size)
    examples = Examples(torch.zeros(3, *SHAPE), torch.arange(3))
    student = make_student(make(), SHAPE)
    recipe = Recipe(1, 3, 0.1, sharpness=Sharpness(0.5, 0.4))
    end = train(student, theta, examples, recipe, seed=SEED, what="x", members=[0])
    assert end.abs().max() < 1e-8


FLAGS = (
    f"--dataset digits --model ConvNetD1W8 --threads 1 --num_experts 2 --dsa false --seed {SEED} "
    "--train_epochs 2 --batch_train 256 "
)


def test_the_buffer_command_trains_gsam_experts(tmp_path):
    """What `--method ftd` stores, against the formulas in float64 from the stored start."""
    flags = [*FLAGS.split(), "--buffer_path", str(tmp_path)]
    buffer.main([*flags, "--method", "ftd", "--rho_max", "0.5"])
    store = TrajectoryStore(tmp_path / "digits" / "ConvNetD1W8")
    made = store.meta(0)["recipe"]
    assert (made["rho"], made["alpha"], made["adaptive"]) == (0.5, 0.3, True)
    data = load_data(parse("buffer", flags))
    examples = Examples(data.train_images.double(), data.train_labels)
    net = make_network("ConvNetD1W8", image_shape=data.image_shape, classes=10)
    recipe = Recipe(2, 256, 0.01, sharpness=Sharpness(0.5, 0.3))
    for expert in (0, 1):
        first, last = store.segment(expert, 0, 2)
        wanted = by_torch(first, examples, recipe, expert, "expert", net)
        assert_close(last - first, wanted - first.double(), 1e-4)  # float32 over 12 steps
