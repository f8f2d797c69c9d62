"""Flat vectors, the head and DSA by every backend, and their bandwidth beside a copy's."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from bench.gpu.device import DEVICE, SMOKE
from bench.gpu.operations import Call, contest
from bench.gpu.results import Row
from fastmtt import draws, ops
from fastmtt.augment import DSA

BACKENDS = ("reference", "triton", "cuda")
# Students and parameters: the standard ConvNet's, and more than a cache holds.
VECTORS = [(2, 100)] if SMOKE else [(1, 320_010), (8, 320_010), (64, 320_010)]
# Students, images of each, classes; of so many features.
HEADS = [(2, 3, 4)] if SMOKE else [(1, 100, 10), (8, 10, 10), (1, 100, 200)]
FEATURES = 16 if SMOKE else 2048
# Students, images of each, their side; of three channels.
AUGMENTED = [(1, 2, 4)] if SMOKE else [(1, 256, 32), (8, 100, 32), (64, 256, 32), (1, 100, 128)]
MAPS = ("crop", "color", "rotate")  # pixels moved, mixed with the image's mean, and sampled


def measure(peaks: dict[str, float]) -> Iterator[Row]:
    """A row for each op, size and backend; ``peaks`` has "copy" in bytes a second."""
    for students, length in VECTORS:
        row = {"table": "vectors", "S": students, "P": length}
        for name, call in flat_calls(students, length).items():
            yield from _rows({**row, "op": name}, call, peaks)
    for students, images, classes in HEADS:
        row = {"table": "heads", "S": students, "images": images, "classes": classes}
        for name, call in head_calls(students, images, classes).items():
            yield from _rows({**row, "op": name}, call, peaks)
    for students, images, side in AUGMENTED:
        row = {"table": "augmentations", "S": students, "images": images, "side": side}
        for name, call in dsa_calls(students, images, side).items():
            yield from _rows({**row, "op": name}, call, peaks)


def _rows(row: Row, exact: Call, peaks: dict[str, float]) -> Iterator[Row]:
    with ops.use("reference"):
        truth = exact.run("reference", "fp32")
    call = exact.map(lambda t: t.float() if t.is_floating_point() else t)
    yield from contest(row, call, truth, "fp32", 0, peaks, BACKENDS)


def flat_calls(students: int, length: int) -> dict[str, Call]:
    """The flat-vector ops by name, in float64."""
    make = torch.Generator(DEVICE).manual_seed(0)
    size, more = (students, length), {"device": DEVICE, "dtype": torch.float64}
    a, b = (torch.randn(size, generator=make, **more) for _ in range(2))
    keep = torch.rand(size, generator=make, device=DEVICE) < 0.5
    return {
        "sgd_update": Call("sgd_update", (a, b, torch.tensor(0.01, **more)), 0),
        "sgd_momentum": Call("sgd_momentum", (a, b, b, torch.tensor(0.01, **more), 0.9, 5e-4), 0),
        "dot": Call("dot", (a, a + b), 0),  # terms that cancel would be all error
        "sqdist": Call("sqdist", (a, b, None), 0),
        "sqdist, masked": Call("sqdist", (a, b, keep), 0),
        "gsam_perturb": Call("gsam_perturb", (a, b, 0.05, True), 0),
        "gsam_combine": Call("gsam_combine", (a, b, 0.4), 0),
    }


def head_calls(students: int, images: int, classes: int) -> dict[str, Call]:
    """The head's ops by name, with class indices and with probabilities, in float64."""
    make = torch.Generator(DEVICE).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(students, *size, generator=make, device=DEVICE, dtype=torch.float64)

    f, f_dot = draw(images, FEATURES), draw(images, FEATURES)
    w, w_dot = (draw(classes, FEATURES) / FEATURES**0.5 for _ in range(2))
    b, b_dot = draw(classes), draw(classes)
    indices = torch.randint(classes, (students, images), generator=make, device=DEVICE)
    found = {}
    for kind, y in (("hard", indices), ("soft", draw(images, classes).softmax(-1))):
        with ops.use("reference"):
            _, logp = ops.linear_xent(f, w, b, y)
            _, logp_dot = ops.linear_xent_jvp(f, f_dot, w, w_dot, b_dot, logp, y)
        arguments = {
            "linear_xent": (f, w, b, y),
            "linear_xent_backward": (f, w, logp, y, (True, True)),
            "linear_xent_jvp": (f, f_dot, w, w_dot, b_dot, logp, y),
            "linear_xent_backward_jvp": (
                *(f, f_dot, w, w_dot, logp, logp_dot, y),
                (True, True, False),
            ),
        }
        found |= {f"{op}, {kind}": Call(op, given, 0) for op, given in arguments.items()}
    return found


def dsa_calls(students: int, images: int, side: int) -> dict[str, Call]:
    """DSA and its transpose by name, with values as they are drawn, in float64."""
    make = torch.Generator(DEVICE).manual_seed(0)
    size = (students, images, 3, side, side)
    x = torch.randn(size, generator=make, device=DEVICE, dtype=torch.float64)
    found = {}
    for name in MAPS:
        streams = [draws.stream(0, "bench", student) for student in range(students)]
        drawn = DSA.stack([DSA(name).draw(rng, images, size[2:]) for rng in streams])
        given = (x, drawn.kind[0].to(DEVICE), drawn.values[0].to(DEVICE).double(), 0.5)
        found |= {f"{op}, {name}": Call(op, given, 0) for op in ("dsa", "dsa_transpose")}
    return found
