"""How much memory a run will take: told before it runs; what would fit, where a GPU's ends.

What a step works in is found by going through one on tensors without memory. What kernels take
within a call is at most the first block's plane where its patches get cotangents, else the second
block's, a quarter of it. Not in it: what CUDA and its libraries take to begin with.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmtt.batches import Plan
from fastmtt.data.memory import available
from fastmtt.errors import FastmttError
from fastmtt.gradmatch import MatchSizes, match_gradients
from fastmtt.ops import backends
from fastmtt.progress import say
from fastmtt.student import ConvNetStudent, Student, Tape
from fastmtt.sweeps import Gradient, Record, empty_rows, first_step, plan_tape

_NOWHERE = torch.device("meta")
_FLOAT = 4
_IMAGES = 4  # copies of a batch about a step: gathered, augmented, its cotangent, that pulled back
_TESTED = 128  # images tested at a time
# Of a network's weights in a match: both gradients in two orders, v, what made it; no more in a
# step of training.
_VECTORS = 8
# A CPU's Winograd kernels work in weights, and each thread in a group of images: 36 matrices of 128
# rows, primal and tangent, of all channels that come in and of 64 that go out.
_TRANSFORMED, _GROUP, _WIDE = 4, 36 * 128 * 2 * _FLOAT, 64
_SETS = 7  # stored images, velocity, their turn's, gradients by parts and as one


def matching(
    student: ConvNetStudent,
    plan: Plan,
    memory: int | None,
    classes: int,
    soft: bool,
    gradient: Gradient = "exact",
) -> int:
    """Bytes of an iteration of matching.

    Args:
        student: one whose room is empty; it is filled with tensors without memory.
        plan: the batches.
        memory: what the tapes may take.
        classes: K.
        soft: whether labels are probabilities.
        gradient: steps that its adjoint sweep leaves out keep nothing.
    """
    students, image = plan.segments, torch.Size(plan.image_shape).numel()
    sizes = _sizes(plan)
    theta = torch.empty(students, student.size, device=_NOWHERE)
    record = Record.empty(plan.steps, theta)
    held = [record.thetas, record.gradients, record.adjoint, record.hv, empty_rows(theta)]
    with backends.use("reference"):  # of a GPU every block's outputs may be kept
        options = student.tape_options(torch.empty(1, 1, *plan.image_shape, device=_NOWHERE))
    images_of = [students * size for size in sizes]
    kept = plan_tape(options, images_of, memory or 0, first_step(gradient, plan.steps))
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


def tapes(student: Student, plan: Plan, memory: int, gradient: Gradient) -> tuple[int, int]:
    """Bytes that a match's tapes keep on a CPU, and the most that they could."""
    options = student.tape_options(torch.empty(1, 1, *plan.image_shape))
    images = [plan.segments * size for size in _sizes(plan)]
    first = first_step(gradient, plan.steps)
    of_key = {option.key: option.bytes for option in options}

    def taken(memory: int) -> int:
        kept = plan_tape(options, images, memory, first)
        return sum(
            of_key[key] * count for keys, count in zip(kept, images, strict=True) for key in keys
        )

    return taken(memory), taken(sys.maxsize)


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


def condensing(student: Student, sizes: MatchSizes, device: torch.device) -> int:
    """Bytes of an iteration of gradient matching.

    Args:
        student: a ``ConvNetStudent`` whose room is empty, which is filled with tensors without
            memory; or any other, whose graph is measured on such tensors.
        sizes: of its matches.
        device: where; a CPU's kernels keep what they work in.
    """
    if isinstance(student, ConvNetStudent):
        network = _of_convnet(student, sizes, device)
    else:
        network = _peak(student, sizes)
    of_class = 3 * sizes.decoded + 2 * sizes.real + 3 * sizes.synthetic
    of_set = _SETS * sizes.classes * sizes.stored
    images = sizes.at_once * of_class + of_set
    return network + _FLOAT * torch.Size(sizes.image_shape).numel() * images


def _of_convnet(student: ConvNetStudent, sizes: MatchSizes, device: torch.device) -> int:
    """Bytes that a compiled student's matches and training take, the images' not among them."""
    theta = torch.empty(sizes.at_once, student.size, device=_NOWHERE)
    for students, size in (
        (theta, sizes.real),
        (theta, sizes.synthetic),
        (theta[:1], sizes.net_batch),
    ):
        _go_through(student, students, size, sizes.image_shape, None, None)
    x = torch.empty(sizes.at_once, sizes.synthetic, *sizes.image_shape, device=_NOWHERE)
    y = torch.empty(x.shape[:2], dtype=torch.int64, device=_NOWHERE)
    with backends.use("reference"):
        student.tangent(theta, theta, x, y, needs={"x"})
    kernels = student.room.largest
    if device.type == "cpu":
        kernels = 2 * kernels + _TRANSFORMED * _bytes(theta[:1])
        widest = max(student.structure.channels)
        kernels += torch.get_num_threads() * _GROUP * (widest + _WIDE)
        for i, channels in enumerate(student.structure.channels[:-1]):
            if backends.without_outputs(channels, torch.empty(0)):
                student.room.forget(("xhat", i), ("xhat_dot", i))
    return student.room.bytes + kernels + _VECTORS * _bytes(theta)


def _peak(student: Student, sizes: MatchSizes) -> int:
    """The most bytes of a match or a training step of any student, on tensors without memory.

    Such a student takes one class after another: of the others there are vectors and images.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as match:
        real, synthetic = (
            _fake_batch(size, sizes.image_shape) for size in (sizes.real, sizes.synthetic)
        )
        match_gradients(student, torch.empty(student.size), real, synthetic, "mse")
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as step:
        student.gradient(
            torch.empty(1, student.size), *_fake_batch(sizes.net_batch, sizes.image_shape)
        )
    vectors = _VECTORS * student.size
    images = torch.Size(sizes.image_shape).numel() * (sizes.real + 2 * sizes.synthetic)
    others = _FLOAT * (sizes.at_once - 1) * (vectors + images)
    return max(match.peak + others, step.peak + _FLOAT * vectors)


def _fake_batch(size: int, image_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return torch.empty(1, size, *image_shape), torch.zeros(1, size, dtype=torch.int64)


class Live(TorchDispatchMode):
    """Bytes of the tensors made within that are still there, and the most there were at a time."""

    def __init__(self) -> None:
        """Nothing was made yet."""
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it gives."""
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def announce(needed: Mapping[str, int], device: torch.device) -> None:
    """Say what will be the most that is taken; of a GPU with what is there now.

    Args:
        needed: bytes by what takes them, one after another.
        device: where.
    """
    if not needed:
        return
    what = max(needed, key=lambda name: needed[name])
    if device.type == "cpu":
        say(f"predicted: {what} takes {_gib(needed[what])}, {_gib(available())} are available")
    if device.type != "cuda":
        return
    there = _total(device)
    now = torch.cuda.memory_allocated(device)
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
                fit.append(f"{key} {value} ({_gib(less)})")
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


def _sizes(plan: Plan) -> list[int]:
    """Images in a student's batch of each step; a smaller one, where there is one, comes first."""
    batch = min(plan.batch_size or plan.n, plan.n)
    passes = [len(part) for part in torch.arange(plan.n).split(batch)][::-1]
    return [plan.parametrisation.count(rows) for rows in islice(cycle(passes), plan.steps)]


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
