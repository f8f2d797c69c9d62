"""Exact meta-gradients for dataset distillation by matching training trajectories.

In your own loop::

    loss = fastmtt.match_trajectory(student, start, target, images, labels, lr, steps=50)
    loss.backward()

``TrajectoryMatcher`` is the same with memory of its own, for loops; ``unroll_sgd`` returns the
trained weights for a loss of yours; ``compat.ReparamModule`` serves loops that stay as they are.
From the shell: ``python -m fastmtt.buffer | distill | evaluate | info``, each with ``--help``.
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
