"""What the public calls accept: every refusal says what was got and what was wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fastmtt.student import ConvNetStudent, Student
from fastmtt.sweeps import Gradient, check_gradient

Theta = Tensor | Mapping[str, Tensor]


def check_options(gradient: Gradient, precision: str | None, memory: int | None) -> None:
    """ValueError unless the options common to the calls are known and in range."""
    check_gradient(gradient)
    if precision not in (None, "fp32", "tf32", "bf16"):
        raise ValueError(f"precision must be None, 'fp32', 'tf32' or 'bf16', got {precision!r}")
    if memory is not None and (not isinstance(memory, int) or memory < 0):
        raise ValueError(f"memory must be None or a whole number of bytes, got {memory!r}")


def check_precision(precision: str | None, theta: Tensor) -> None:
    """ValueError unless weights of this dtype can be computed with in this precision."""
    if precision == "bf16" and theta.dtype != torch.float32:
        raise ValueError(
            f"precision 'bf16' rounds what float32 convolutions multiply, but the weights are "
            f"{theta.dtype}: give float32 weights, or leave precision out"
        )
    if precision == "tf32" and (theta.dtype != torch.float32 or not theta.is_cuda):
        raise ValueError(
            f"precision 'tf32' is a GPU's way to multiply float32, but the weights are "
            f"{theta.dtype} on {theta.device}: leave precision out"
        )


def check_count(name: str, value: object) -> None:
    """ValueError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def flatten_theta(theta: Theta, module: nn.Module, name: str) -> Tensor:
    """Weights as a flat vector [P] or [S,P]; a dict of tensors is joined in the module's order.

    Raises:
        ValueError: a dict whose names or shapes are not the module's, or neither form.
    """
    if isinstance(theta, Tensor):
        return theta
    if not isinstance(theta, Mapping):
        raise ValueError(
            f"{name} must be a flat tensor or a dict by parameter name, got "
            f"{type(theta).__name__}; a list of a snapshot's tensors is joined by "
            "torch.cat([p.reshape(-1) for p in it])"
        )
    shapes = {key: p.shape for key, p in module.named_parameters()}
    if set(theta) != set(shapes):
        missing, extra = sorted(set(shapes) - set(theta)), sorted(set(theta) - set(shapes))
        raise ValueError(
            f"{name}'s names are not the student's parameters: missing {missing}, unknown {extra}"
        )
    for key, shape in shapes.items():
        if theta[key].shape != shape:
            raise ValueError(
                f"{name}[{key!r}] must have shape {list(shape)}, got {list(theta[key].shape)}"
            )
    return torch.cat([theta[key].reshape(-1) for key in shapes])


def check_theta(flat: Tensor, size: int, name: str) -> None:
    """ValueError unless ``flat`` is [P] or [S,P] in float32 or float64 with the student's P."""
    fits = flat.dim() in (1, 2) and flat.shape[-1] == size
    if not fits or flat.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} must be float32 or float64 [{size}] or [S,{size}] (the student has {size} "
            f"parameters), got {flat.dtype} {list(flat.shape)}"
        )


def versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was written to; two equal lists mean that none was changed in between."""
    return [t._version for t in tensors if not t.is_inference()]


def refuse_changed(tensors: Sequence[Tensor], before: list[int], names: str) -> None:
    """RuntimeError in a backward whose inputs have other ``versions`` than in forward."""
    if versions(tensors) != before:
        raise RuntimeError(
            f"{names} were changed in place between forward and backward, which needs them as "
            "they were: change them after backward"
        )


def check_rates(lr: Tensor | float, steps: int, theta: Tensor) -> Tensor:
    """The learning rate as a tensor, a scalar or one a step; ValueError if it is neither."""
    rates = torch.as_tensor(lr, dtype=theta.dtype, device=theta.device)
    if rates.shape not in ((), (steps,)):
        raise ValueError(f"lr must be a scalar or one a step [{steps}], got {list(rates.shape)}")
    return rates


def check_examples(x: Tensor, y: Tensor, lead: Sequence[int], theta: Tensor, where: str) -> None:
    """ValueError unless images and labels fit each other and theta.

    Args:
        x: [*lead, n, ...].
        y: int64 [*lead, n] or floating point [*lead, n, ...].
        lead: sizes of the axes before the images'.
        theta: the weights they meet.
        where: what to call them in a message.
    """
    for name, given in (("images", x), ("labels", y)):
        if not isinstance(given, Tensor):
            raise ValueError(
                f"the {name} of {where} must be a tensor, got {type(given).__name__}: make it one "
                "by torch.as_tensor"
            )
    axes = len(lead) + 1
    together = x.dim() > axes and y.shape[:axes] == x.shape[:axes]
    if not together or tuple(x.shape[: axes - 1]) != tuple(lead):
        front = "".join(f"{size}," for size in lead)
        raise ValueError(
            f"{where} must be images [{front}n,...] with labels [{front}n] or [{front}n,K], got "
            f"{list(x.shape)} and {list(y.shape)}"
        )
    if x.shape[axes - 1] == 0:
        raise ValueError(f"{where} must hold at least one image, got none")
    if y.dtype != torch.int64 and not y.is_floating_point():
        raise ValueError(f"the labels of {where} must be int64 or floating point, got {y.dtype}")
    for name, tensor in (("images", x), ("labels", y)):
        if tensor.is_floating_point() and tensor.dtype != theta.dtype:
            raise ValueError(
                f"the {name} of {where} are {tensor.dtype}, theta is {theta.dtype}: use one dtype"
            )
        if tensor.device != theta.device:
            raise ValueError(
                f"the {name} of {where} are on {tensor.device}, theta is on {theta.device}: "
                "use one device"
            )


def check_batch(student: Student, x: Tensor, y: Tensor, axes: int, where: str) -> None:
    """ValueError unless images and labels suit what is known of the student.

    Args:
        student: a ConvNet wants floating-point images; ``classes`` is None for a module or a loss
            of the caller's own, which judge labels themselves.
        x: images [*, n, C, H, W].
        y: int64 class indices [*, n] or probabilities [*, n, K].
        axes: axes before the classes'.
        where: what to call them in a message.
    """
    if isinstance(student, ConvNetStudent) and not x.is_floating_point():
        raise ValueError(f"the images of {where} must be floating point, got {x.dtype}")
    classes = student.classes
    if classes is None:
        return
    if y.is_floating_point():
        if y.dim() != axes + 1 or y.shape[-1] != classes:
            raise ValueError(
                f"probabilities of {where} must have {classes} columns, one a class, got shape "
                f"{list(y.shape)}"
            )
        return
    if y.dim() != axes:
        raise ValueError(
            f"int64 labels of {where} must be class indices, {axes}-dimensional, got shape "
            f"{list(y.shape)}; one-hot labels are floating point"
        )
    # on a GPU this look would wait for it; there the kernels' own assertion speaks
    if y.device.type == "cpu" and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"labels of {where} must lie in 0..{classes - 1}, got {int(y.min())} to {int(y.max())}"
        )
