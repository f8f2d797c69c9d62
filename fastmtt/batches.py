"""A matching iteration's batches: which rows of the synthetic set, augmented how, and back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmtt import draws as keyed
from fastmtt.augment import DSA, Parameters
from fastmtt.capture import say_once, send
from fastmtt.parametrisation import PIXELS, Pixels, stacked

Augment = DSA | Callable[[Tensor], Tensor]


class Draws(NamedTuple):
    """One iteration's random choices as data.

    Attributes:
        indices: for each of the N steps int64 [S,b], rows of the set.
        parameters: for each step the augmentation's parameters; None without DSA.
        distinct: whether no step has a row twice for one student.
        drawn: for each step what the parametrisation drew [S,...]; None where it draws nothing.
        mixes: for each step CutMix's draws [S,b+4]; None without it.
    """

    indices: list[Tensor]
    parameters: list[Parameters] | None
    distinct: bool = True
    drawn: list[Tensor] | None = None
    mixes: list[Tensor] | None = None

    @property
    def shapes(self) -> Hashable:
        """What must be equal for other draws to take these ones' place in memory."""
        kinds = [tuple(p.kind.shape) for p in self.parameters or ()]
        drawn = tuple(tuple(d.shape) for d in (*(self.drawn or ()), *(self.mixes or ())))
        return tuple(tuple(r.shape) for r in self.indices), tuple(kinds), drawn, self.distinct


class PlacedDraws:
    """Draws in a device's memory that stays where it is, each kind of number copied at once.

    Attributes:
        draws: what was put last, as views of that memory.
    """

    def __init__(self, draws: Draws, device: torch.device) -> None:
        """Make room for draws of these shapes, and put these."""
        self._places = [torch.empty_like(t, device=device) for t in _joined(draws)]
        self.draws = _separate(self._places, draws)
        self.put(draws)

    def put(self, draws: Draws) -> None:
        """Others of the same shapes in their place."""
        for source, place in zip(_joined(draws), self._places, strict=True):
            send(source, place)


class Plan(NamedTuple):
    """What every iteration's batches look like: the sizes :func:`draw` wants."""

    steps: int
    segments: int
    n: int
    batch_size: int | None
    image_shape: tuple[int, ...]
    augment: DSA | None
    parametrisation: Pixels = PIXELS


def draw(
    *,
    seed: int,
    steps: int,
    segments: int,
    n: int,
    batch_size: int | None,
    image_shape: Sequence[int],
    augment: Augment | None = None,
    parametrisation: Pixels = PIXELS,
    indices: Sequence[Tensor] | None = None,
    index: tuple[int, ...] = (),
    first_segment: int = 0,
) -> Draws:
    """An iteration's draws by key; segment s draws the same whatever runs beside it.

    Args:
        seed: the key's seed.
        steps: N.
        segments: S.
        n: rows of the set.
        batch_size: rows a step; None for all.
        image_shape: a training image's (C, H, W).
        augment: parameters are drawn if it is a DSA.
        parametrisation: of the set's rows.
        indices: given rows, N tensors [b] or [S,b], in place of drawn ones.
        index: further numbers of the key, for example the iteration.
        first_segment: the number of the first segment.
    """
    numbers = range(first_segment, first_segment + segments)
    if indices is not None:
        rows = _given(indices, steps, segments, n)
        distinct = all(len(row.unique()) == len(row) for step in rows for row in step)
    else:
        batch = min(batch_size or n, n)
        streams = [keyed.stream(seed, "batch", *index, s) for s in numbers]
        drawn = [keyed.batch_indices(rng, n, batch, steps) for rng in streams]
        rows, distinct = [torch.stack(step) for step in zip(*drawn, strict=True)], True
    shape = tuple(image_shape)
    streams = [keyed.stream(seed, "places", *index, s) for s in numbers]
    places = [[parametrisation.draw(rng, r.shape[1], shape) for r in rows] for rng in streams]
    if not isinstance(augment, DSA):
        return Draws(rows, None, distinct, side_by_side(places))
    counts = [parametrisation.count(r.shape[1]) for r in rows]
    streams = [keyed.stream(seed, "dsa", *index, s) for s in numbers]
    parameters = [[augment.draw(rng, count, shape) for count in counts] for rng in streams]
    augmented = [DSA.stack(step) for step in zip(*parameters, strict=True)]
    return Draws(rows, augmented, distinct, side_by_side(places))


def draw_published(
    generator: torch.Generator,
    *,
    steps: int,
    segments: int,
    n: int,
    batch_size: int | None,
    image_shape: Sequence[int],
    augment: DSA | None = None,
    parametrisation: Pixels = PIXELS,
) -> Draws:
    """An iteration's draws by torch's generator, in the order the published programs draw.

    Each step draws a permutation if the last one is used up, then the places of its windows, then
    its augmentation; segments come one after the other.
    """
    rows: list[list[Tensor]] = []
    places: list[list[Tensor | None]] = []
    parameters: list[list[Parameters]] = []
    batch = min(batch_size or n, n)
    for _ in range(segments):
        chunks: list[Tensor] = []
        rows.append([])
        places.append([])
        parameters.append([])
        for _ in range(steps):
            picked = keyed.published_batch_indices(generator, n, batch, chunks)
            rows[-1].append(picked)
            drawn = parametrisation.draw_published(generator, len(picked), tuple(image_shape))
            places[-1].append(drawn)
            if augment is not None:
                count = parametrisation.count(len(picked))
                parameters[-1].append(augment.draw_published(generator, count, image_shape))
    indices = [torch.stack(step) for step in zip(*rows, strict=True)]
    if augment is None:
        return Draws(indices, None, drawn=side_by_side(places))
    augmented = [DSA.stack(step) for step in zip(*parameters, strict=True)]
    return Draws(indices, augmented, drawn=side_by_side(places))


class SyntheticSteps:
    """The synthetic set as batches for the sweeps; gathers cotangents into ``gx`` and ``gy``.

    With DSA a batch is augmented again on the adjoint sweep. An augmentation that is not ours is
    called once a step; its output and graph are kept, and its vector-Jacobian product is taken.
    What the set and the draws hold may change in place between iterations: see :meth:`begin`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        segments: int,
        draws: Draws,
        augment: Augment | None,
        parametrisation: Pixels = PIXELS,
    ) -> None:
        """Take the stored set [n,...] with labels, shared by the segments, and draws beside it."""
        self.images, self.labels, self.augment = images.detach(), labels.detach(), augment
        self.draws, self.segments, self.parametrisation = draws, segments, parametrisation
        self.needs: frozenset[str] = frozenset()
        self.gx: Tensor | None = None
        self.gy: Tensor | None = None
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """N."""
        return len(self.draws.indices)

    def begin(self) -> None:
        """Forget what an earlier iteration's images were augmented to."""
        self._kept.clear()

    def want(self, images: bool, labels: bool) -> None:
        """Say which cotangents to gather, and start them at zero."""
        labels = labels and self.labels.is_floating_point()
        self.needs = frozenset(["x"] * images + ["y"] * labels)
        self.gx = torch.zeros_like(self.images) if images else None
        self.gy = torch.zeros_like(self.labels) if labels else None

    def rows(self, t: int) -> int:
        """Images of step t for each segment."""
        return self.parametrisation.count(self.draws.indices[t].shape[1])

    def batch(self, t: int) -> tuple[Tensor, Tensor]:
        """Augmented images [S,b,C,H,W] and labels [S,b] or [S,b,K] of step t."""
        rows = self.draws.indices[t]
        return self._augmented(t, rows), self.parametrisation.labels(self.labels[rows])

    def pull_back(self, t: int, gx: Tensor | None, gy: Tensor | None) -> None:
        """Carry cotangents through augmentation and parametrisation, add them to their rows."""
        rows = self.draws.indices[t].shape[1]
        if gx is not None and self.gx is not None:
            sampled = self._unaugmented(t, gx)
            stored = self.parametrisation.pull_back(sampled, self._drawn(t), rows)
            self._add(t, stored, self.gx)
        if gy is not None and self.gy is not None:
            self._add(t, self.parametrisation.pull_back_labels(gy, rows), self.gy)

    def _drawn(self, t: int) -> Tensor | None:
        return None if self.draws.drawn is None else self.draws.drawn[t]

    def _add(self, t: int, g: Tensor, total: Tensor) -> None:
        """Add a step's cotangents [S,b,...] to their rows, student after student, in fixed order.

        A GPU adds atomically, in an order of its own where a row comes twice in one call: distinct
        rows are added a student at a time, others sorted before.
        """
        for rows, part in zip(self.draws.indices[t], g, strict=True):
            if total.is_cuda and not self.draws.distinct:
                total.index_put_((rows,), part, accumulate=True)
            else:
                total.index_add_(0, rows, part)

    def _augmented(self, t: int, rows: Tensor) -> Tensor:
        x = self.parametrisation.sample(self.images[rows], self._drawn(t))
        if self.augment is None:
            return x
        if isinstance(self.augment, DSA):
            assert self.draws.parameters is not None
            return self.augment.apply(x, self.draws.parameters[t])
        if t not in self._kept:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                out = torch.stack([self.augment(images) for images in leaf])
            self._kept[t] = leaf, out
            _say_cost(len(self), out.numel() * out.element_size())
        return self._kept[t][1].detach()

    def _unaugmented(self, t: int, g: Tensor) -> Tensor:
        if self.augment is None:
            return g
        if isinstance(self.augment, DSA):
            assert self.draws.parameters is not None
            return self.augment.pull_back(g, self.draws.parameters[t])
        leaf, out = self._kept[t]
        (pulled,) = torch.autograd.grad(
            out, leaf, g, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return pulled


def _joined(draws: Draws) -> list[Tensor]:
    """All rows, kinds, values and places of some draws, end to end."""
    return [torch.cat([t.reshape(-1) for t in some]) for some in _by_number(draws) if some]


def _separate(joined: Sequence[Tensor], like: Draws) -> Draws:
    """Views of what :func:`_joined` gives, in the shapes of other draws."""
    wholes = iter(joined)

    def views(shapes: Sequence[Tensor]) -> list[Tensor]:
        if not shapes:
            return []
        parts = next(wholes).split([t.numel() for t in shapes])
        return [part.view(t.shape) for part, t in zip(parts, shapes, strict=True)]

    indices, kinds, values, drawn, mixes = map(views, _by_number(like))
    parameters = list(map(Parameters, kinds, values)) if like.parameters else like.parameters
    return Draws(indices, parameters, like.distinct, drawn or None, mixes or None)


def _by_number(draws: Draws) -> list[list[Tensor]]:
    parameters = draws.parameters or []
    kinds, values = [p.kind for p in parameters], [p.values for p in parameters]
    return [draws.indices, kinds, values, draws.drawn or [], draws.mixes or []]


def side_by_side(places: Sequence[Sequence[Tensor | None]]) -> list[Tensor] | None:
    """The segments' draws of each step, side by side."""
    steps = [stacked(step) for step in zip(*places, strict=True)]
    drawn = [step for step in steps if step is not None]
    return drawn or None


def _given(indices: Sequence[Tensor], steps: int, segments: int, n: int) -> list[Tensor]:
    if len(indices) != steps:
        raise ValueError(f"indices must hold one tensor a step, {steps}, got {len(indices)}")
    stacked = []
    for t, rows in enumerate(indices):
        rows = torch.as_tensor(rows).cpu()
        wanted = rows.dtype == torch.int64 and rows.dim() in (1, 2) and rows.numel() > 0
        if not wanted or (rows.dim() == 2 and len(rows) != segments):
            raise ValueError(
                f"indices[{t}] must be int64 [b] or [{segments},b], got {rows.dtype} "
                f"{list(rows.shape)}"
            )
        if int(rows.min()) < 0 or int(rows.max()) >= n:
            raise ValueError(f"indices[{t}] must lie in 0..{n - 1}, the rows of the set")
        stacked.append(rows.expand(segments, -1) if rows.dim() == 1 else rows)
    return stacked


def _say_cost(steps: int, size: int) -> None:
    say_once(
        "an augmentation other than fastmtt.DSA is kept with its graph for every step: at least "
        f"{steps} x {size / 2**20:.1f} MiB; fastmtt.DSA keeps nothing"
    )
