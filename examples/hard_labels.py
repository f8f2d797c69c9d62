"""A loop with hard labels and an augmentation of its own, as MTT's, in its two forms.

A small problem by default, in seconds; flags make it a real one, as ``--dataset CIFAR10
--data_path data --model ConvNet --ipc 10 --batch_syn 100``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from common import arguments, base_problem, batches_of, compare, student_net
from torch import Tensor

import fastmtt


class Augmentation:
    """Mirrors and shifts batches [b,C,H,W]; its draws come from a generator of its own."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """Another draw at every call; differentiable."""
        mirror, down, right = torch.randint(-1, 2, (3,), generator=self.random).tolist()
        x = x.flip(-1) if mirror > 0 else x
        return x.roll((down, right), (-2, -1))


def naive(p: Namespace) -> Iterator[float]:
    """As such repositories write it."""
    optimizer_img = torch.optim.SGD([p.images], lr=p.lr_img, momentum=0.5)
    optimizer_lr = torch.optim.SGD([p.lr], lr=p.lr_lr, momentum=0.5)
    augment = Augmentation(p.seed)
    for _ in range(p.iterations):
        indices = batches_of(len(p.images), p.batch_syn, p.syn_steps)
        student_params = [p.start.clone().requires_grad_()]
        for these in indices:
            x, y = augment(p.images[these]), p.labels[these]
            output = student_net(p.net, x, flat_param=student_params[-1])
            ce_loss = F.cross_entropy(output, y)
            (grad,) = torch.autograd.grad(ce_loss, student_params[-1], create_graph=True)
            student_params.append(student_params[-1] - p.lr * grad)
        param_dist = F.mse_loss(p.start, p.target, reduction="sum")
        loss = F.mse_loss(student_params[-1], p.target, reduction="sum") / param_dist
        optimizer_img.zero_grad()
        optimizer_lr.zero_grad()
        loss.backward()
        optimizer_img.step()
        optimizer_lr.step()
        yield loss.item()


def with_fastmtt(p: Namespace) -> Iterator[float]:
    """The same with one call."""
    optimizer_img = torch.optim.SGD([p.images], lr=p.lr_img, momentum=0.5)
    optimizer_lr = torch.optim.SGD([p.lr], lr=p.lr_lr, momentum=0.5)
    augment = Augmentation(p.seed)
    matcher = fastmtt.TrajectoryMatcher(p.net, steps=p.syn_steps, augment=augment)
    for _ in range(p.iterations):
        indices = batches_of(len(p.images), p.batch_syn, p.syn_steps)
        loss = matcher(p.start, p.target, p.images, p.labels, p.lr, indices=indices)
        optimizer_img.zero_grad()
        optimizer_lr.zero_grad()
        loss.backward()
        optimizer_img.step()
        optimizer_lr.step()
        yield loss.item()


def problem(args: Namespace, dtype: torch.dtype) -> Namespace:
    """Images that start as real ones; images and learning rate are learned."""
    p = base_problem(args, dtype)
    return Namespace(**vars(p), leaves={"images": p.images, "lr": p.lr})


if __name__ == "__main__":
    compare(problem, naive, with_fastmtt, arguments(__doc__, None))
