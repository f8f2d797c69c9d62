"""How much of a GPU's memory a run will take: told before it runs; what would fit, where it ends.

What a step works in is found by going through one on tensors without memory. What kernels take
within a call is at most the first block's plane where its patches get cotangents, else the second
block's, a quarter of it. Not in it: what CUDA and its libraries take to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice

import torch
from torch import Tensor

from fastmtt.batches import Plan
from fastmtt.errors import FastmttError
from fastmtt.ops import backends
from fastmtt.progress import say
from fastmtt.student import ConvNetStudent, Tape
from fastmtt.sweeps import Record, empty_rows, plan_tape

_NOWHERE = torch.device("meta")
_FLOAT = 4
_IMAGES = 4  # copies of a batch about a step: gathered, augmented, its cotangent, that pulled back
_TESTED = 128  # images tested at a time


def matching(
    student: ConvNetStudent, plan: Plan, memory: int | None, classes: int, soft: bool
) -> int:
    """Bytes of an iteration of matching.

    Args:
        student: one whose room is empty; it is filled with tensors without memory.
        plan: the batches.
        memory: what the tapes may take.
        classes: K.
        soft: whether labels are probabilities.
    """
    students, image = plan.segments, torch.Size(plan.image_shape).numel()
    batch = min(plan.batch_size or plan.n, plan.n)
    passes = [len(part) for part in torch.arange(plan.n).split(batch)][::-1]
    sizes = [plan.parametrisation.count(rows) for rows in islice(cycle(passes), plan.steps)]
    theta = torch.empty(students, student.size, device=_NOWHERE)
    record = Record.empty(plan.steps, theta)
    held = [record.thetas, record.gradients, record.adjoint, record.hv, empty_rows(theta)]
    options = student.tape_options(torch.empty(1, 1, *plan.image_shape, device=_NOWHERE))
    kept = plan_tape(options, [students * size for size in sizes], memory or 0)
    tapes = {}
    for size, keep in set(zip(sizes, kept, strict=True)):
        tape = Tape(keep)
        _go_through(student, theta, size, plan.image_shape, classes if soft else None, tape)
        tapes[size, keep] = tape.room.bytes
    of_tapes = sum(tapes[step] for step in zip(sizes, kept, strict=True))
    vectors = 6 * _bytes(theta)  # start, target, and what the loss's own gradient takes
    images = _FLOAT * image * (_IMAGES * students * max(sizes) + 4 * plan.n)
    room = student.room.bytes + student.room.largest
    return sum(map(_bytes, held)) + of_tapes + room + vectors + images


def training(
    student: ConvNetStudent,
    students: int,
    count: int,
    batch: int,
    image_shape: tuple[int, ...],
    *,
    sharpness: bool = False,
) -> int:
    """Bytes of training and testing so many students side by side.

    Args:
        student: one whose room is empty; it is filled with tensors without memory.
        students: S.
        count: examples.
        batch: examples a step.
        image_shape: (C, H, W).
        sharpness: whether GSAM takes a second gradient.
    """
    theta = torch.empty(students, student.size, device=_NOWHERE)
    batch = min(batch, count)
    for size in {batch, count % batch} - {0}:
        _go_through(student, theta, size, image_shape, None, None)
    with backends.use("reference"):
        student.logits(theta, torch.empty(students, _TESTED, *image_shape, device=_NOWHERE))
    rows = (8 if sharpness else 5) * _bytes(empty_rows(theta))
    images = _FLOAT * torch.Size(image_shape).numel() * 3 * students * max(batch, _TESTED)
    return rows + student.room.bytes + student.room.largest // 4 + images


def announce(needed: Mapping[str, int], device: torch.device) -> None:
    """Say on a GPU what will be the most that is taken: what is there now and the largest part.

    Args:
        needed: bytes by what takes them, one after another.
        device: where.
    """
    if device.type != "cuda" or not needed:
        return
    there = _total(device)
    now = torch.cuda.memory_allocated(device)
    what = max(needed, key=lambda name: needed[name])
    say(
        f"predicted peak {_gib(now + needed[what])} of {there / 2**30:.0f} GiB, in {what}; data "
        f"take {_gib(now)}"
    )


@contextmanager
def explained(
    device: torch.device, predict: Callable[..., int], choices: Mapping[str, Sequence[object]]
) -> Iterator[None]:
    """Say, where a GPU's memory ends within, which smaller choice would fit.

    Args:
        device: where.
        predict: bytes, with none or one of the choices changed.
        choices: by key smaller values, the largest first.

    Raises:
        FastmttError: in place of torch's OutOfMemoryError.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise FastmttError(advice(_total(device), predict, choices)) from None


def advice(there: int, predict: Callable[..., int], choices: Mapping[str, Sequence[object]]) -> str:
    """What was wanted, what there is, and what would fit.

    A choice is named if it is predicted to take a fifth less than there is and than was wanted.
    """
    wanted = predict()
    fit = []
    for key, values in choices.items():
        for value in values:
            less = predict(**{key: value})
            if less <= 0.8 * min(there, wanted):
                fit.append(f"{key} {'null' if value is None else value} ({_gib(less)})")
                break
    would = f"would fit: {', '.join(fit)}" if fit else "nothing smaller of this run would fit"
    return (
        f"out of the GPU's memory: predicted {_gib(wanted)} of {_gib(there)}; {would}; or end what "
        "else uses it; with --resume a run goes on from what was finished"
    )


def halves(value: int, least: int = 1) -> list[int]:
    """A number's half, quarter and so on, down to the least."""
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _go_through(
    student: ConvNetStudent,
    theta: Tensor,
    size: int,
    image_shape: tuple[int, ...],
    classes: int | None,
    tape: Tape | None,
) -> None:
    """A step's gradient and, with a tape, its tangent: the student's room holds their sizes."""
    front = len(theta), size
    x = torch.empty(*front, *image_shape, device=_NOWHERE)
    hard = torch.empty(front, dtype=torch.int64, device=_NOWHERE)
    y = hard if classes is None else torch.empty(*front, classes, device=_NOWHERE)
    with backends.use("reference"):
        student.gradient(theta, x, y, tape)
        if tape is not None:
            student.tangent(theta, theta, x, y, tape)


def _total(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[1]


def _bytes(t: Tensor) -> int:
    return t.untyped_storage().nbytes() if t._base is None else t._base.untyped_storage().nbytes()


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
