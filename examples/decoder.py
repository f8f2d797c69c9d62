"""A loop whose images come from a decoder network, learned along with its codes.

A small problem by default, in seconds; flags make it a real one, as ``--dataset CIFAR10
--data_path data --model ConvNet --ipc 10 --batch_syn 100``.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from common import arguments, base_problem, batches_of, compare, student_net
from torch import nn

import fastmtt


def naive(p: Namespace) -> Iterator[float]:
    """As such repositories write it."""
    optimizer = torch.optim.Adam([p.codes, *p.decoder.parameters()], lr=p.lr_decoder)
    optimizer_lr = torch.optim.SGD([p.lr], lr=p.lr_lr, momentum=0.5)
    for _ in range(p.iterations):
        indices = batches_of(len(p.codes), p.batch_syn, p.syn_steps)
        theta = p.start.clone().requires_grad_()
        for these in indices:
            x, y = p.decoder(p.codes[these]), p.labels[these]
            ce_loss = F.cross_entropy(student_net(p.net, x, flat_param=theta), y)
            (grad,) = torch.autograd.grad(ce_loss, theta, create_graph=True)
            theta = theta - p.lr * grad
        param_dist = F.mse_loss(p.start, p.target, reduction="sum")
        loss = F.mse_loss(theta, p.target, reduction="sum") / param_dist
        loss = loss + p.code_decay * p.codes.square().mean()
        optimizer.zero_grad()
        optimizer_lr.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer_lr.step()
        yield loss.item()


def with_fastmtt(p: Namespace) -> Iterator[float]:
    """The same with one call; the matching loss stays."""
    optimizer = torch.optim.Adam([p.codes, *p.decoder.parameters()], lr=p.lr_decoder)
    optimizer_lr = torch.optim.SGD([p.lr], lr=p.lr_lr, momentum=0.5)
    for _ in range(p.iterations):
        indices = batches_of(len(p.codes), p.batch_syn, p.syn_steps)
        batches = [(p.decoder(p.codes[these]), p.labels[these]) for these in indices]
        theta = fastmtt.unroll_sgd(p.net, p.start, batches, p.lr)
        param_dist = F.mse_loss(p.start, p.target, reduction="sum")
        loss = F.mse_loss(theta, p.target, reduction="sum") / param_dist
        loss = loss + p.code_decay * p.codes.square().mean()
        optimizer.zero_grad()
        optimizer_lr.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer_lr.step()
        yield loss.item()


def make_decoder(code: int, image_shape: torch.Size) -> nn.Sequential:
    """From codes [n,code] to images [n,C,H,W] of even sides."""
    channels, height, width = image_shape
    return nn.Sequential(
        nn.Linear(code, 8 * (height // 2) * (width // 2)),
        nn.Tanh(),
        nn.Unflatten(1, (8, height // 2, width // 2)),
        nn.ConvTranspose2d(8, channels, 2, stride=2),
    )


def problem(args: Namespace, dtype: torch.dtype) -> Namespace:
    """Codes and decoder start at random and are learned, the learning rate too."""
    p = base_problem(args, dtype)
    decoder = make_decoder(p.code, p.images.shape[1:]).to(p.images)
    codes = torch.randn(len(p.labels), p.code).to(p.images).requires_grad_()
    leaves = {"codes": codes, "lr": p.lr, **dict(decoder.named_parameters(prefix="decoder"))}
    return Namespace(**vars(p), decoder=decoder, codes=codes, leaves=leaves)


DEFAULTS = {"code": 12, "lr_decoder": 0.01, "code_decay": 0.01}

if __name__ == "__main__":
    compare(problem, naive, with_fastmtt, arguments(__doc__, None, **DEFAULTS))
