"""Students: networks as the two verbs the sweeps are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmtt import draws
from fastmtt.errors import NoStudentError
from fastmtt.student.base import Student, flatten_parameters
from fastmtt.student.convnet import ConvNetStudent
from fastmtt.student.heads import LossFunction
from fastmtt.student.module import ModuleStudent
from fastmtt.student.probe import draws_numbers
from fastmtt.student.room import Room, Tape
from fastmtt.student.structure import Structure, find_structure

__all__ = [
    "ConvNetStudent",
    "LossFunction",
    "ModuleStudent",
    "Room",
    "Structure",
    "Student",
    "Tape",
    "find_structure",
    "flatten_parameters",
    "initial_weights",
    "make_student",
]


def make_student(
    module: nn.Module,
    image_shape: tuple[int, ...],
    loss_fn: LossFunction | None = None,
    *,
    precision: str | None = None,
    room: Room | None = None,
) -> Student:
    """The fastest exact student for a module.

    Args:
        module: a network from images [B,C,H,W] to logits [B,K]; its weights are not used.
        image_shape: (C, H, W).
        loss_fn: ``loss_fn(logits, labels) -> scalar``; None for cross-entropy.
        precision: of what convolutions multiply: None for what torch's switches say, "fp32",
            "tf32", or "bf16", which sums in float32 (a ConvNet's, from 16 input channels on).
            Of other modules bf16 is the whole forward, under autocast.
        room: memory for a ``ConvNetStudent`` to compute in, for one call at a time.

    Returns:
        A ``ConvNetStudent`` where the module's structure is the ConvNet's, else ``ModuleStudent``.

    Raises:
        NoStudentError: the module keeps statistics, draws numbers in its forward, or cannot take
            such images.
    """
    structure = find_structure(module, image_shape)
    if isinstance(structure, Structure):
        return ConvNetStudent(module, structure, loss_fn, bf16=precision == "bf16", room=room)
    student = ModuleStudent(module, loss_fn, bf16=precision == "bf16")
    if draws_numbers(module, image_shape):
        raise NoStudentError(
            f"{type(module).__name__} gives different outputs for the same inputs: a step is "
            "computed twice, so a student must not draw numbers; call .eval() on it or take its "
            "dropout out"
        )
    return student


def initial_weights(make: Callable[[], nn.Module], seed: int, what: str, *index: int) -> Tensor:
    """Fresh weights [P] of the network ``make`` builds, a function of the key alone.

    Torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # not torch.manual_seed, which would seed every GPU as well
        torch.default_generator.manual_seed(draws.torch_seed(seed, what, *index))
        return flatten_parameters(make()).float()
