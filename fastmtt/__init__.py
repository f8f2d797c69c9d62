"""Exact meta-gradients for dataset distillation by matching training trajectories.

A student with weights theta_0 takes N steps of SGD on a synthetic set; the loss is its distance to
an expert's weights theta*, |theta_N - theta*|^2 / |theta_0 - theta*|^2, and ``backward`` gives the
loss's gradients in images, labels and learning rate, through all N steps, at constant memory.

    >>> import torch
    >>> import fastmtt
    >>> student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    >>> start = torch.cat([p.detach().reshape(-1) for p in student.parameters()])
    >>> target = start + 0.1 * torch.randn(len(start))  # an expert's weights some epochs later
    >>> images = torch.randn(4, 3, 8, 8, requires_grad=True)
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> lr = torch.tensor(0.02, requires_grad=True)
    >>> loss = fastmtt.match_trajectory(student, start, target, images, labels, lr, steps=10)
    >>> loss.backward()
    >>> images.grad.shape, lr.grad.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([]))

The calls:

- `match_trajectory`: the loss in one call.
- `TrajectoryMatcher`: the same as a module that keeps its memory, for loops.
- `unroll_sgd`: theta_N itself, for a loss of your own on top.
- `compat.ReparamModule`: for loops that stay as they are, its blocks compiled.
- `DSA`: the field's augmentation, whose batches need not be kept.

What they take: a student is any ``torch.nn.Module`` from images to logits whose output depends on
its weights and inputs alone (no batch norm in training mode, no dropout); its own weights are not
used. Weights are flat [P], or [S,P] for S segments at once, in the order of ``named_parameters()``,
or a dict by name. Labels are int64 classes [n] or probabilities [n,K]. float32 or float64.

What cannot be done raises ValueError or RuntimeError with one sentence that says what to do;
`FastmttError` is the commands' form of it. From the shell: ``python -m fastmtt.buffer | distill |
evaluate | export | scores | report | info``, each with ``--help``.
"""

from fastmtt import compat
from fastmtt.augment import DSA
from fastmtt.errors import FastmttError
from fastmtt.matching import TrajectoryMatcher, match_trajectory
from fastmtt.unroll import unroll_sgd

__version__ = "0.1.0"
__all__ = [
    "DSA",
    "FastmttError",
    "TrajectoryMatcher",
    "compat",
    "match_trajectory",
    "unroll_sgd",
]
