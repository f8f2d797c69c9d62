"""First-order work, an expert's epoch and an evaluation, by fastmtt and in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from bench import naive
from bench.images import CLASSES, SHAPE, load_slice
from bench.problem import DEPTH
from bench.worker import EAGER
from fastmtt import draws
from fastmtt.data import DataSet
from fastmtt.evaluation import evaluate
from fastmtt.protocol import MOMENTUM, WEIGHT_DECAY, Protocol
from fastmtt.student import initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, train

SEED, LR = 0, 0.01


class Job(NamedTuple):
    """Networks to train on the first images of a slice, without augmentation, and then to test.

    ``kind`` is "expert" (plain SGD) or "evaluation" (the protocol's momentum, decay and schedule);
    ``precision`` is as in :class:`bench.problem.Size`; ``part`` says of what it is a part.
    """

    kind: str
    networks: int
    images: int
    batch: int
    epochs: int
    width: int
    tested: int
    precision: str = "fp32"
    part: str = "all"

    def __str__(self) -> str:
        return f"{self.kind}-{self.networks}x{self.images}-width{self.width}-{self.precision}"

    @property
    def model(self) -> str:
        """Factory name of the network."""
        return f"ConvNetD{DEPTH}W{self.width}"

    def recipe(self) -> Recipe:
        """How ``fastmtt.training`` is told to do it."""
        if self.kind == "expert":
            return Recipe(self.epochs, self.batch, LR)
        decay_after = (self.epochs - 1) // 2 + 1
        return Recipe(self.epochs, self.batch, LR, MOMENTUM, WEIGHT_DECAY, decay_after)

    def data(self) -> DataSet:
        """Its images."""
        return load_slice(self.images, max(self.tested, 1))


def contender(name: str, job: Job, data: DataSet, compiler: str = EAGER) -> Callable[[], Tensor]:
    """The job by a contender: an expert's weights [S,P], an evaluation's accuracies [S].

    Args:
        name: "ours", "naive" or, of an expert, "compiled": naive compiled and in channels last.
        job: what is to be done.
        data: on which images.
        compiler: the compiled one's backend of ``torch.compile``.
    """
    runs: dict[tuple[str, str], Callable[..., Tensor]] = {
        ("expert", "ours"): train_ours,
        ("expert", "naive"): train_naive,
        ("expert", "compiled"): partial(train_naive, channels_last=True, compiler=compiler),
        ("evaluation", "ours"): _evaluate_ours,
        ("evaluation", "naive"): _evaluate_naive,
    }
    return partial(runs[job.kind, name], job, data)


def prepare(name: str, compiler: str = EAGER, **sizes: Any) -> Callable[[], Tensor]:
    """A contender by its name and the fields of its job, in a process of its own.

    Whatever a first call loads is loaded: by a tiny job, or, where that means to compile for the
    shapes of a step, by one step.
    """
    job = Job(**sizes)
    if compiler == EAGER:
        first = job._replace(networks=1, images=2, batch=2, epochs=2, width=8, tested=2)
    else:
        first = job._replace(networks=1, images=job.batch, epochs=1, tested=0)
    contender(name, first, first.data(), compiler)()
    return contender(name, job, job.data(), compiler)


def train_ours(job: Job, data: DataSet, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights [S,P] of all networks, trained side by side."""
    precision = None if dtype == torch.float64 else job.precision
    return train(
        make_student(_make(job), SHAPE, precision=precision),
        starts(job).to(dtype),
        Examples(data.train_images.to(dtype), data.train_labels),
        job.recipe(),
        seed=SEED,
        what=job.kind,
        members=range(job.networks),
    )


def train_naive(
    job: Job,
    data: DataSet,
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = False,
    compiler: str = EAGER,
) -> Tensor:
    """Weights [S,P] of networks trained one after another on the same batches."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = data.train_images.to(dtype).contiguous(memory_format=layout)
    recipe = job.recipe()
    first = job.epochs if recipe.decay_after is None else recipe.decay_after + 1
    ends = []
    for member, start in enumerate(starts(job)):
        net = _plain(job, start.to(dtype)).to(memory_format=layout)
        step = net
        if compiler != EAGER:
            step = cast(nn.Module, torch.compile(net, backend=compiler, dynamic=False))
        for epochs, lr in ((range(first), LR), (range(first, job.epochs), LR / 10)):
            naive.train(
                step,
                images,
                data.train_labels,
                [rows for epoch in epochs for rows in _batches(job, member, epoch)],
                lr=lr,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
            )
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    return torch.stack(ends)


def starts(job: Job) -> Tensor:
    """The networks' initial weights [S,P], those that ``fastmtt.evaluation`` draws."""
    drawn = [
        initial_weights(lambda: _make(job), SEED, f"{job.kind} init", member)
        for member in range(job.networks)
    ]
    return torch.stack(drawn)


def _evaluate_ours(job: Job, data: DataSet) -> Tensor:
    protocol = Protocol(
        job.model, job.networks, job.epochs - 1, job.batch, None, SEED, job.precision
    )
    examples = Examples(data.train_images, data.train_labels)
    return evaluate(data, examples, LR, protocol, what=job.kind).test


def _evaluate_naive(job: Job, data: DataSet) -> Tensor:
    right = [
        naive.count_correct(_plain(job, weights), data.test_images, data.test_labels)
        for weights in train_naive(job, data)
    ]
    return torch.tensor(right, dtype=torch.float64) / len(data.test_labels)


def _batches(job: Job, member: int, epoch: int) -> tuple[Tensor, ...]:
    """The rows of each step as ``fastmtt.training`` draws them."""
    order = draws.stream(SEED, f"{job.kind} shuffle", member, epoch).permutation(job.images)
    return torch.from_numpy(order).split(job.batch)


def _make(job: Job) -> nn.Module:
    return make_network(job.model, image_shape=SHAPE, classes=CLASSES)


def _plain(job: Job, weights: Tensor) -> nn.Module:
    shape = SHAPE[0], SHAPE[1], CLASSES, DEPTH, job.width, job.precision
    net = naive.ConvNet(*shape).to(weights.dtype)
    nn.utils.vector_to_parameters(weights, net.parameters())
    return net
