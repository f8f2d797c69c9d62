"""A tiny data set, its experts and a run's folder that remembers: distillations in float64."""

import copy

import networks
import straight_line
import torch

from fastmtt.data import DataSet, Normalised
from fastmtt.distillation import Distillation
from fastmtt.errors import FastmttError
from fastmtt.methods import METHODS
from fastmtt.options import DistillConfig
from fastmtt.run import RunFolder
from fastmtt.stages import FIRST
from fastmtt.student.zoo import make_network

CLASSES, SHAPE, PER_CLASS = 3, (3, 8, 8), 14


def make_dataset(seed=0, noise=1.0, dtype=torch.float64):
    """Three classes round a mean image each, with noise enough for experts to err."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    means, labels = 0.3 * normal(CLASSES, *SHAPE), torch.arange(CLASSES).repeat(PER_CLASS)
    train, test = (
        (means[labels] + noise * normal(len(labels), *SHAPE)).to(dtype) for _ in range(2)
    )
    space = Normalised([0.5] * 3, [0.25] * 3)
    none = torch.empty(0, *SHAPE, dtype=dtype), torch.empty(0, dtype=torch.int64)
    names = tuple("abc")
    return DataSet("in memory", train, labels, test, labels, *none, names, space, "drawn")


def network_of(model):
    return make_network(model, image_shape=SHAPE, classes=CLASSES).double()


def train_experts(model, dataset, *, epochs=6, rates=(0.3, 0.3), seed=0):
    """Snapshots [epochs + 1, P] of plain gradient descent on all images, one expert a rate."""
    experts = []
    for number, rate in enumerate(rates):
        module = networks.seeded(lambda: network_of(model), seed + number)
        theta = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
        rows = [theta]
        for _ in range(epochs):
            for half in torch.arange(len(dataset.train_labels)).chunk(2):
                leaf = theta.clone().requires_grad_()
                images, labels = dataset.train_images[half].double(), dataset.train_labels[half]
                outputs = straight_line.logits(module, leaf, images)
                loss = straight_line.cross_entropy(outputs, labels)
                theta = theta - rate * torch.autograd.grad(loss, leaf)[0]
            rows.append(theta)
        experts.append(torch.stack(rows))
    return experts


class Experts:
    """What a store of trajectories is to a distillation."""

    root = "memory"

    def __init__(self, trajectories):
        self.trajectories = trajectories

    def indices(self):
        return [*range(len(self.trajectories))]

    def length(self, index):
        return len(self.trajectories[index])

    def segment(self, index, start, stop):
        rows = self.trajectories[index]
        if not (0 <= start < len(rows) and 0 <= stop < len(rows)):
            raise FastmttError(f"expert {index} has snapshots 0 to {len(rows) - 1}")
        return rows[start].clone(), rows[stop].clone()


class Remembered(RunFolder):
    """A run's folder that keeps what the run was after each outer iteration."""

    def __init__(self, path, distillation):
        super().__init__(path)
        self.distillation, self.records, self.states = distillation, [], []

    def log_metrics(self, record):
        super().log_metrics(record)
        if "loss" in record:
            self.records.append(dict(record))
            self.states.append(copied(self.distillation.state()))


def copied(state):
    """A state that the run's next steps do not change."""
    tensors, values = state
    return {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(values)


def configured(method, **keys):
    """A method's configuration, of the size of seconds."""
    small = dict(
        dsa=False,
        num_experts=2,
        ipc=2,
        batch_syn=4,
        syn_steps=5,
        expert_epochs=2,
        max_start_epoch=4,
        current_max_start_epoch=1,
        expansion_end_epoch=2,
        skip_first_eva=True,
        Iteration=2,
    )
    return DistillConfig(method=method, **{**METHODS[method].choices, **small, **keys})


def began(path, config, dataset, experts, stage=FIRST):
    """A distillation ready to step, with its folder."""
    path.mkdir(exist_ok=True)
    distillation = Distillation(config, dataset, stage)
    distillation.store = Experts(experts)
    distillation.experts = distillation.store.indices()
    distillation.open(distillation.store, Remembered(path, distillation))
    return distillation
