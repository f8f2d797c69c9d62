"""A loop with learned labels, a loss of its own, a mask and a gate, as DATM's and PAD's.

A small problem by default, in seconds; flags make it a real one, as ``--dataset CIFAR10
--data_path data --model ConvNet --ipc 10 --batch_syn 100``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import torch
from common import arguments, base_problem, batches_of, compare, student_net
from torch import Tensor

import fastmtt


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits [b,K] and probabilities [b,K], sharpened by a temperature."""
    return -(targets * (logits / 0.8).log_softmax(-1)).sum(-1).mean()


def naive(p: Namespace) -> Iterator[float]:
    """As such repositories write it."""
    optimizer_img = torch.optim.SGD([p.images], lr=p.lr_img, momentum=0.5)
    optimizer_lr = torch.optim.SGD([p.lr], lr=p.lr_lr, momentum=0.5)
    optimizer_y = torch.optim.SGD([p.label_logits], lr=p.lr_y, momentum=0.9)
    for _ in range(p.iterations):
        indices = batches_of(len(p.images), p.batch_syn, p.syn_steps)
        targets = p.label_logits.softmax(-1)
        student_params = [p.start.clone().requires_grad_()]
        for these in indices:
            output = student_net(p.net, p.images[these], flat_param=student_params[-1])
            ce_loss = soft_cross_entropy(output, targets[these])
            (grad,) = torch.autograd.grad(ce_loss, student_params[-1], create_graph=True)
            student_params.append(student_params[-1] - p.lr * grad)
        param_loss = (student_params[-1] - p.target).square()[p.deep].sum()
        loss = param_loss / (p.start - p.target).square()[p.deep].sum()
        for optimizer in (optimizer_img, optimizer_lr, optimizer_y):
            optimizer.zero_grad()
        if loss.item() <= p.threshold:
            loss.backward()
            for optimizer in (optimizer_img, optimizer_lr, optimizer_y):
                optimizer.step()
        yield loss.item()


def with_fastmtt(p: Namespace) -> Iterator[float]:
    """The same with one call."""
    optimizer_img = torch.optim.SGD([p.images], lr=p.lr_img, momentum=0.5)
    optimizer_lr = torch.optim.SGD([p.lr], lr=p.lr_lr, momentum=0.5)
    optimizer_y = torch.optim.SGD([p.label_logits], lr=p.lr_y, momentum=0.9)
    for _ in range(p.iterations):
        indices = batches_of(len(p.images), p.batch_syn, p.syn_steps)
        targets = p.label_logits.softmax(-1)
        given = p.net, p.start, p.target, p.images, targets, p.lr
        options = {"loss_fn": soft_cross_entropy, "keep": p.deep, "indices": indices}
        loss = fastmtt.match_trajectory(*given, steps=p.syn_steps, **options)
        for optimizer in (optimizer_img, optimizer_lr, optimizer_y):
            optimizer.zero_grad()
        if loss.item() <= p.threshold:
            loss.backward()
            for optimizer in (optimizer_img, optimizer_lr, optimizer_y):
                optimizer.step()
        yield loss.item()


def problem(args: Namespace, dtype: torch.dtype) -> Namespace:
    """Images and labels are learned; of the weights only the deeper ones count."""
    p = base_problem(args, dtype)
    label_logits = (2 * torch.eye(p.classes)[p.labels.cpu()]).to(p.images).requires_grad_()
    deep = torch.arange(len(p.start), device=args.device) >= int(p.depth_ratio * len(p.start))
    leaves = {"images": p.images, "label_logits": label_logits, "lr": p.lr}
    return Namespace(**vars(p), label_logits=label_logits, deep=deep, leaves=leaves)


DEFAULTS = {"lr_y": 2.0, "depth_ratio": 0.25, "threshold": 2.0}

if __name__ == "__main__":
    compare(problem, naive, with_fastmtt, arguments(__doc__, None, **DEFAULTS))
