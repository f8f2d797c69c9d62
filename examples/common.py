"""What the three examples share: their problem, and the comparison of a loop's two forms.

A form is a generator: a distillation's whole outer loop, which yields the loss of each iteration.
"""

from __future__ import annotations

import ctypes
import difflib
import inspect
import multiprocessing
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmtt import data
from fastmtt.student.zoo import make_network

Form = Callable[[Namespace], Iterator[float]]


def arguments(description: str | None, argv: list[str] | None, **defaults: Any) -> Namespace:
    """The command line: a small problem by default, a real one by its flags."""
    known = {
        "dataset": "digits",
        "data_path": "data",
        "model": "ConvNetD2W32",
        "ipc": 2,
        "syn_steps": 20,
        "batch_syn": 20,
        "lr_teacher": 0.02,
        "lr_img": 10.0,
        "lr_lr": 1e-5,
        "iterations": 3,
        "device": "cpu",
        "seed": 0,
        **defaults,
    }
    parser = ArgumentParser(description=description)
    for name, value in known.items():
        parser.add_argument(f"--{name}", default=value, type=type(value), help=f"[{value}]")
    return parser.parse_args(argv)


def base_problem(args: Namespace, dtype: torch.dtype) -> Namespace:
    """Real images to start from, a student, a segment of an expert, and what stays of ``args``."""
    real = data.load(args.dataset, args.data_path, progress=False)
    torch.manual_seed(args.seed)
    classes = len(real.classes)
    net = make_network(args.model, image_shape=real.image_shape, classes=classes)
    start, target = _segment_of_an_expert(net, real)
    rows = [(real.train_labels == k).nonzero()[: args.ipc, 0] for k in range(classes)]
    place = {"device": args.device, "dtype": dtype}
    return Namespace(
        **vars(args),
        classes=classes,
        net=net.to(**place),
        start=start.to(**place),
        target=target.to(**place),
        images=real.train_images[torch.cat(rows)].to(**place).requires_grad_(),
        labels=torch.arange(classes, device=args.device).repeat_interleave(args.ipc),
        lr=torch.tensor(args.lr_teacher, **place, requires_grad=True),
    )


def _segment_of_an_expert(net: nn.Module, real: data.DataSet) -> tuple[Tensor, Tensor]:
    """Weights [P] on the way of a network trained on real images, and some steps later."""
    optimizer, snapshots = torch.optim.SGD(net.parameters(), lr=0.05), []
    for step in range(21):
        if step % 10 == 0:
            snapshots.append(torch.cat([p.detach().reshape(-1) for p in net.parameters()]))
        rows = torch.randint(len(real.train_labels), (32,))
        optimizer.zero_grad()
        F.cross_entropy(net(real.train_images[rows]), real.train_labels[rows]).backward()
        optimizer.step()
    return snapshots[1], snapshots[2]


def student_net(net: nn.Module, x: Tensor, flat_param: Tensor) -> Tensor:
    """The network's output at flat weights: the repositories' ReparamModule."""
    parts = flat_param.split([p.numel() for p in net.parameters()])
    named = zip(net.named_parameters(), parts, strict=True)
    output: Tensor = functional_call(net, {n: part.view_as(p) for (n, p), part in named}, (x,))
    return output


def batches_of(count: int, batch: int, steps: int) -> list[Tensor]:
    """Each step's rows: permutations in pieces, the last piece first, as the repositories do it."""
    pieces, rows = [], []
    for _ in range(steps):
        pieces = pieces or list(torch.randperm(count).split(batch))
        rows.append(pieces.pop())
    return rows


class Run(NamedTuple):
    """What one form did.

    Attributes:
        exact: gradients of the first iteration by name, in float64.
        single: the same in float32, as all that follows.
        losses: one an iteration.
        seconds: of an iteration, the median.
        peak: bytes of memory that came on top of the problem.
    """

    exact: dict[str, np.ndarray]
    single: dict[str, np.ndarray]
    losses: list[float]
    seconds: float
    peak: int


def first_gradients(p: Namespace, iterations: Iterator[float]) -> dict[str, np.ndarray]:
    """One iteration; the gradients it left at the problem's ``leaves``, by name."""
    next(iterations)
    return {name: t.grad.double().cpu().numpy().copy() for name, t in p.leaves.items()}


def run(make: Callable[..., Namespace], form: Form, args: Namespace) -> Run:
    """A form in this process, on the problem ``make(args, dtype)`` in either precision."""
    p = make(args, torch.float64)
    exact = first_gradients(p, form(p))
    p = make(args, torch.float32)
    single = first_gradients(p, form(p))
    p = make(args, torch.float32)
    floor, seconds, losses = _lowered_peak(args.device), [], []
    begin = time.perf_counter()
    for loss in form(p):  # a loss is a number, so that the device has finished
        losses.append(loss)
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    return Run(exact, single, losses, median(seconds), _peak(args.device) - floor)


def compare(make: Callable[..., Namespace], naive: Form, ours: Form, args: Namespace) -> None:
    """Run both forms, each in a process of its own, and print a table."""
    runs = []
    for form in (naive, ours):
        with multiprocessing.get_context("fork").Pool(1) as pool:
            runs.append(pool.apply(run, (make, form, args)))
    slow, fast = runs
    gone, written = changed_lines(naive, ours)
    print(f"lines of the loop deleted: {gone}, written: {written}")
    print(f"{'':22}{'naive':>10}{'fastmtt':>10}")
    print(f"{'ms an iteration':22}{1e3 * slow.seconds:10.0f}{1e3 * fast.seconds:10.0f}")
    print(f"{'peak memory, MB':22}{slow.peak / 1e6:10.1f}{fast.peak / 1e6:10.1f}")
    print(f"{'last loss':22}{slow.losses[-1]:10.4f}{fast.losses[-1]:10.4f}")
    print("Relative differences of the gradients of the first iteration:")
    print(f"{'':22}{'in float64':>14}{'naive 32':>14}{'fastmtt 32':>14}")
    for name, want in slow.exact.items():
        got = fast.exact[name], slow.single[name], fast.single[name]
        errors = [np.linalg.norm(g - want) / np.linalg.norm(want) for g in got]
        print(f"{name:22}" + "".join(f"{error:14.1e}" for error in errors))
    print("(in float64: the two against each other; 32: each in float32 against naive in float64)")


def changed_lines(naive: Form, ours: Form) -> tuple[int, int]:
    """How many lines of one form are not in the other, and the reverse; docstrings aside."""
    bodies = []
    for form in (naive, ours):
        text = inspect.getsource(form).replace(f'"""{form.__doc__}"""', "")
        bodies.append(text.splitlines()[1:])
    marks = [line[:1] for line in difflib.ndiff(*bodies)]
    return marks.count("-"), marks.count("+")


def _lowered_peak(device: str) -> int:
    """What is in use now; from here on the peak counts."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device != "cpu" else _status("VmHWM")


def _status(key: str) -> int:
    """A line of Linux's own account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}: memory is measured on Linux only")
