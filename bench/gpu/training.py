"""Training side by side: experts on real images, and evaluation networks on a distilled set."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench import naive
from bench.gpu.device import DEVICE, FASTEST, SMOKE, peak_mb, reset_peak, synchronize
from bench.gpu.results import Row
from bench.problem import CHANNELS, CLASSES, DEPTH, IMAGE
from fastmtt import DSA, draws
from fastmtt.student import initial_weights, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, accuracy, train

WIDTH = 8 if SMOKE else 128
SECONDS = 0.1 if SMOKE else 4.0  # of measuring a row
CIFAR = 50_000
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of evaluation networks, as published
LR = 0.01
SHAPE = (CHANNELS, IMAGE, IMAGE)


class Job(NamedTuple):
    """Students trained at once on batches of so many of the examples."""

    what: str
    students: int
    batch: int
    augmented: bool

    def recipe(self, epochs: int, schedule: Any = None) -> Recipe:
        """Of plain SGD for experts, as published for evaluation."""
        momentum, decay = (0.0, 0.0) if self.what == "expert" else (MOMENTUM, WEIGHT_DECAY)
        augment = DSA() if self.augmented else None
        return Recipe(epochs, self.batch, LR, momentum, decay, augment=augment, schedule=schedule)


class _First:
    """The schedule of an epoch that sees the first examples alone."""

    def __init__(self, count: int) -> None:
        self.count = count

    def rows(self, epoch: int) -> Tensor:
        return torch.arange(self.count)

    def describe(self) -> dict[str, Any]:
        return {"first": self.count}


def buffer(archive: str | None) -> Iterator[Row]:
    """Images a second of S experts side by side and of plain PyTorch, one after another.

    Args:
        archive: CIFAR-10 as an .npz of JPEG files; None for random images as many.
    """
    examples, source = load(archive)
    batch = 4 if SMOKE else 256
    common = {"table": "experts", "images": source}
    apart = _agreement(examples)
    plain = Job("expert", 1, batch, augmented=False)
    rate = _rate_naive(plain, examples)
    yield {**common, **_expert_columns("naive", plain, rate)}
    jobs = [plain, *(plain._replace(students=s) for s in ((2,) if SMOKE else (10, 100)))]
    for job in [*jobs, jobs[-1]._replace(augmented=True)]:
        try:
            reset_peak()
            own = _rate_ours(job, examples)
        except torch.OutOfMemoryError:
            yield {**common, "contender": "ours", "S": job.students, "failed": "out of memory"}
            continue
        columns = _expert_columns("ours", job, own)
        yield {**common, **columns, "of_naive": own / rate, "peak_mb": peak_mb(), "apart": apart}


def evaluation(archive: str | None) -> Iterator[Row]:
    """Seconds of an evaluation of 5 networks with 10 and 100 images, its epochs extrapolated."""
    examples, source = load(archive, test=True)
    networks, epochs = (2, 4) if SMOKE else (5, 1001)
    yield from _testing(examples, networks)
    for images in (2, 4) if SMOKE else (10, 100):
        few = Examples(examples.images[:images].contiguous(), examples.labels[:images].contiguous())
        common = {"table": "evaluation", "images": images, "networks": networks, "from": source}
        job = Job("evaluation", networks, images, augmented=False)
        one = _rate_naive(job, few) / images  # epochs of one network
        total = networks * epochs / one
        yield {
            **common,
            "contender": "naive",
            "augmented": False,
            "epochs_a_s": one / networks,
            "extrapolated_s": total,
        }
        for augmented in (False, True):
            rate = _rate_ours(job._replace(augmented=augmented), few) / images / networks
            yield {
                **common,
                "contender": "ours",
                "augmented": augmented,
                "epochs_a_s": rate,
                "extrapolated_s": epochs / rate,
                "faster_than_naive": None if augmented else total * rate / epochs,
            }


def load(archive: str | None, *, test: bool = False) -> tuple[Examples, str]:
    """CIFAR-10 on the device, normalised roughly, and a word on where it comes from."""
    if archive is None:
        make = torch.Generator().manual_seed(0)
        count = 16 if SMOKE else (10_000 if test else CIFAR)
        images = torch.randn(count, *SHAPE, generator=make)
        return Examples(images.to(DEVICE), (torch.arange(count) % CLASSES).to(DEVICE)), "random"
    split = "test" if test else "train"
    with np.load(archive, allow_pickle=False) as arrays:
        jpeg, offsets, labels = (arrays[f"{split}_{p}"] for p in ("jpeg", "offsets", "labels"))
    count = 16 if SMOKE else len(labels)
    pixels = np.stack([_decoded(jpeg[offsets[i] : offsets[i + 1]]) for i in range(count)])
    images = torch.from_numpy(pixels).to(DEVICE).permute(0, 3, 1, 2).float() / 255
    images = ((images - images.mean()) / images.std()).contiguous()
    classes = torch.from_numpy(labels[:count].astype(np.int64)).to(DEVICE)
    return Examples(images, classes), Path(archive).name


def _decoded(jpeg: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


def _expert_columns(name: str, job: Job, rate: float) -> Row:
    return {
        "contender": name,
        "S": job.students,
        "augmented": job.augmented,
        "images_a_s": rate,
        "100x50_epochs_min, extrapolated": 100 * 50 * CIFAR / rate / 60,
    }


def _rate_ours(job: Job, examples: Examples) -> float:
    """Images a second over all students; what a first call makes and loads is left out."""
    count = job.batch * 3
    _train_ours(job, examples, count)
    while True:
        seen, seconds = _train_ours(job, examples, count)
        if seconds > SECONDS / 3:
            return seen * job.students / seconds
        count = int(count * min(max(SECONDS / 2 / seconds, 2), 50)) // job.batch * job.batch


def _train_ours(job: Job, examples: Examples, count: int) -> tuple[int, float]:
    """Train on about so many images, in whole epochs of the examples if that is more than one.

    Returns:
        Images seen by each student, and seconds.
    """
    epochs = -(-count // examples.count)
    schedule = _First(count) if epochs == 1 else None
    theta = _starts(job)
    synchronize()
    start = time.perf_counter()
    _end_of(job, theta, examples, job.recipe(epochs, schedule))
    synchronize()
    return count if epochs == 1 else epochs * examples.count, time.perf_counter() - start


def _end_of(job: Job, theta: Tensor, examples: Examples, recipe: Recipe) -> Tensor:
    student = make_student(_network(), SHAPE)
    torch.backends.cudnn.allow_tf32 = FASTEST == "tf32"
    return train(
        student, theta, examples, recipe, seed=0, what=job.what, members=range(job.students)
    )


def _rate_naive(job: Job, examples: Examples) -> float:
    """Images a second of plain eager PyTorch, one network; its first steps are left out."""
    net, steps = _plain(_starts(job._replace(students=1))[0]), 3
    _train_naive(net, job, examples, steps)
    while True:
        seconds = _train_naive(net, job, examples, steps)
        if seconds > SECONDS / 3:
            return steps * job.batch / seconds
        steps = int(steps * min(max(SECONDS / 2 / seconds, 2), 50))


def _train_naive(net: nn.Module, job: Job, examples: Examples, steps: int) -> float:
    recipe = job.recipe(1)
    batches = [_some(examples.count, job.batch, step) for step in range(steps)]
    synchronize()
    start = time.perf_counter()
    naive.train(
        net,
        examples.images,
        examples.labels,
        batches,
        lr=LR,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    synchronize()
    return time.perf_counter() - start


def _some(count: int, batch: int, step: int) -> Tensor:
    first = step * batch % max(count - batch + 1, 1)
    return torch.arange(first, first + batch, device=DEVICE)


def _agreement(examples: Examples) -> float:
    """How far an expert of ours moves from where PyTorch's goes on the same batches.

    Raises:
        ArithmeticError: by more than flipped ReLUs and rounding explain.
    """
    batch = 4 if SMOKE else 256
    job, count = Job("expert", 1, batch, augmented=False), 3 * batch
    start = _starts(job)
    ours = _end_of(job, start, examples, job.recipe(1, _First(count)))
    order = draws.stream(0, "expert shuffle", 0, 0).permutation(count)
    net = _plain(start[0])
    batches = torch.from_numpy(order).to(DEVICE).split(batch)
    naive.train(
        net, examples.images, examples.labels, batches, lr=LR, momentum=0.0, weight_decay=0.0
    )
    theirs = torch.cat([p.detach().flatten() for p in net.parameters()])
    apart = float((ours[0] - theirs).norm() / (theirs - start[0]).norm())
    if not apart <= 0.05:
        raise ArithmeticError(f"experts of ours and of PyTorch are {apart:.2g} of their way apart")
    return apart


def _testing(examples: Examples, networks: int) -> Iterator[Row]:
    job = Job("evaluation", networks, 1, augmented=False)
    student, theta = make_student(_network(), SHAPE), _starts(job)
    labels = examples.labels
    accuracy(student, theta, examples.images[:2], labels[:2])
    synchronize()
    start = time.perf_counter()
    accuracy(student, theta, examples.images, labels)
    yield {
        "table": "testing",
        "test images": examples.count,
        "networks": networks,
        "s": time.perf_counter() - start,
    }


def _network() -> nn.Module:
    return make_network(f"ConvNetD{DEPTH}W{WIDTH}", image_shape=SHAPE, classes=CLASSES)


def _starts(job: Job) -> Tensor:
    drawn = [initial_weights(_network, 0, job.what, m) for m in range(job.students)]
    return torch.stack(drawn).to(DEVICE)


def _plain(weights: Tensor) -> nn.Module:
    net = naive.ConvNet(CHANNELS, IMAGE, CLASSES, DEPTH, WIDTH).to(DEVICE)
    nn.utils.vector_to_parameters(weights.clone(), net.parameters())
    return net
