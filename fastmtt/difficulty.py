"""How difficult images are to networks: GraNd, EL2N, uncertainty, forgetting.

Each score is a number for every one of S networks and n images, the larger the harder; what the
papers call the score is its mean over networks. Images come as they are, without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from fastmtt.student import ModuleStudent, Student
from fastmtt.student.base import split_flat
from fastmtt.student.heads import scalar_loss
from fastmtt.training import Images

Measure = Literal["entropy", "margin", "confidence"]
_Gradients = Callable[[Tensor, Tensor, Tensor], Tensor]


def grand(student: Student, theta: Tensor, images: Images, labels: Tensor) -> Tensor:
    """The norm of each image's own gradient of the loss in all weights (arXiv 2107.07075).

    The paper's score, not DeepCore's, which takes the last layer's gradient alone and puts a
    softmax before the cross-entropy's own.

    Args:
        student: the network.
        theta: weights [S,P] in the public order.
        images: [n,C,H,W].
        labels: int64 [n].

    Returns:
        [S,n] in the weights' dtype.
    """
    if isinstance(student, ModuleStudent):
        return _norms(_of_module(student), theta, images, labels)
    return _norms(_of_students(student), student.pack(theta), images, labels)


def el2n(student: Student, theta: Tensor, images: Images, labels: Tensor) -> Tensor:
    """The error ||softmax - onehot||_2 (arXiv 2107.07075), arguments and result as `grand`."""
    error = logits(student, theta, images).softmax(-1)
    error[:, torch.arange(len(labels), device=labels.device), labels] -= 1
    return error.norm(dim=-1)


def uncertainty(
    student: Student, theta: Tensor, images: Images, measure: Measure = "entropy"
) -> Tensor:
    """How little a prediction says; DeepCore's three measures (arXiv 2204.08499).

    Entropy in nats, 1 - (p1 - p2) for the two likeliest classes, or 1 - p1. Other arguments and
    the result as `grand`.
    """
    logp = logits(student, theta, images).log_softmax(-1)
    if measure == "entropy":
        return -torch.special.xlogy(logp.exp(), logp.exp()).sum(-1)
    best = logp.exp().topk(2, dim=-1).values
    return 1 - best[..., 0] + (best[..., 1] if measure == "margin" else 0)


def logits(student: Student, theta: Tensor, images: Images) -> Tensor:
    """The outputs [S,n,K] of weights [S,P] (public order) for images [n,C,H,W]."""
    packed = student.pack(theta)
    parts = [
        torch.cat([student.logits(weights, x[None]) for weights in packed.split(1)])
        for x in images.split(_BATCH)
    ]
    return torch.cat(parts, dim=1)


class Forgetting:
    """How often an image is right and then wrong from one look to the next (arXiv 1812.05159).

    The paper looks at an image whenever it is in a batch. Here somebody looks at all of them at
    once, say after every epoch; how they are augmented and when they come up plays no part then.
    """

    def __init__(self, networks: int, images: int) -> None:
        """Nothing has been seen of S networks and n images."""
        self._looks = 0
        self._times = torch.zeros(networks, images, dtype=torch.int64)
        self._right = torch.zeros(networks, images, dtype=torch.bool)
        self._learned = self._right

    def look(self, right: Tensor) -> None:
        """Take note of which images are right: bool [S,n]."""
        now = right.cpu()
        self._looks += 1
        self._times = self._times + (self._right & ~now)
        self._learned = self._learned | now
        self._right = now

    @property
    def scores(self) -> Tensor:
        """Times forgotten, int64 [S,n]; images that never were right have as many as looks.

        That is more than any other can have. The paper says infinity, which has no mean over
        networks; DeepCore counts 0, which makes the hardest images the easiest.
        """
        return torch.where(self._learned, self._times, self._looks)


_BATCH = 128  # images a forward pass
# Gradients, one for each image, that are there at a time: numbers in all. On a CPU they should stay
# near the cache, on a GPU there must be enough of them to fill it.
_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}


def _norms(gradients: _Gradients, theta: Tensor, images: Images, labels: Tensor) -> Tensor:
    """Norms [S,n] of what ``gradients(weights [P], x [b,...], y [b])`` gives as [b,P]."""
    size = max(1, _AT_ONCE.get(theta.device.type, 2**23) // theta.shape[1])
    # Cloned: a row's place in memory, and by it the last bit, would depend on the rows before it.
    networks = [weights.clone() for weights in theta]
    parts = [
        torch.stack([gradients(weights, x, y).norm(dim=1) for weights in networks])
        for x, y in zip(images.split(size), labels.split(size), strict=True)
    ]
    return torch.cat(parts, dim=1)


def _of_students(student: Student) -> _Gradients:
    """As many students with the same weights as there are images, each with a batch of one."""

    def gradients(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return student.gradient(weights.expand(len(x), -1), x[:, None], y[:, None])[1]

    return gradients


def _of_module(student: ModuleStudent) -> _Gradients:
    """The module's own forward, vectorised: its student would take one image at a time."""

    def loss(weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parameters = dict(split_flat(weights, student.names, student.shapes))
        outputs = functional_call(student.module, parameters, (x[None],))
        return scalar_loss(student.loss_fn, outputs, y[None])

    return vmap(grad(loss), in_dims=(None, 0, 0))
