"""Small matching problems with the gradients of both sides."""

import naive
import networks
import published_dsa
import torch

import fastmtt
from fastmtt import batches
from fastmtt.parametrisation import PIXELS


def meta_gradients(loss, given):
    """Gradients by ``.backward()``, as users call it."""
    loss.backward()
    return {name: t.grad for name, t in given.items() if t.requires_grad}


class Problem:
    """Random weights, images, labels and draws in float64: n = 6 images, 3 classes."""

    def __init__(
        self,
        make,
        *,
        shape=(3, 16, 16),
        steps,
        batch=4,
        segments=1,
        labels="hard",
        lr="scalar",
        dsa=None,
        seed=0,
        n=6,
        parametrisation=PIXELS,
    ):
        self.module, self.shape, self.steps = networks.seeded(make, seed), shape, steps
        base = naive.flat_weights(self.module)
        self.size = base.numel()
        self.random = torch.Generator().manual_seed(seed + 1)
        start = base + 0.1 * self._normal(segments, self.size)
        self.data = {
            "start": start,
            "target": start + 0.05 * self._normal(segments, self.size),
            "images": self._normal(n, *parametrisation.stored_shape(shape)),
            "labels": self._labels(labels, n),
            "lr": 0.05 + 0.01 * self._normal(*[steps] * (lr == "per step")),
        }
        self.augment = None if dsa is None else fastmtt.DSA(mode=dsa)
        self.truth = None if dsa is None else published_dsa.augment
        self.draws = batches.draw(
            seed=seed,
            steps=steps,
            segments=segments,
            n=n,
            batch_size=batch,
            image_shape=shape,
            augment=self.augment,
            parametrisation=parametrisation,
        )
        self.parametrisation = parametrisation

    def _normal(self, *shape):
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def _labels(self, kind, n):
        if kind == "hard":
            return torch.arange(n) % 3
        logits = self._normal(n, 3)
        return logits.softmax(-1) if kind == "soft" else logits.exp()

    def given(self, dtype=torch.float64):
        """Fresh leaves: start, target, images, labels, lr."""
        return {
            name: t.clone() if t.dtype == torch.int64 else t.to(dtype, copy=True).requires_grad_()
            for name, t in self.data.items()
        }

    def loss(self, given, **options):
        """Our matching loss."""
        options = {
            "augment": self.augment,
            "parametrisation": self.parametrisation,
            **options,
        }
        matcher = fastmtt.TrajectoryMatcher(self.module, steps=self.steps, **options)
        return matcher(**given, draws=self.draws)

    def naive_loss(self, given, **options):
        """Autograd's matching loss, by the module in the given dtype."""
        module = self.module.to(given["start"].dtype)
        return naive.matching_loss(module, given, self.draws, augment=self.truth, **options)

    def ours(self, dtype=torch.float64, **options):
        """Loss and meta-gradients by name."""
        given = self.given(dtype)
        loss = self.loss(given, **options)
        return loss.detach(), meta_gradients(loss, given)

    def naive(self, dtype=torch.float64, **options):
        """The same by autograd."""
        given = self.given(dtype)
        loss = self.naive_loss(given, **options)
        return loss.detach(), naive.gradients(loss, given)
