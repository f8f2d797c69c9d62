"""The two verbs for any ``nn.Module``: exact, one step's memory, as fast as double backward is."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fastmtt.errors import NoStudentError
from fastmtt.student.base import EVERYTHING, Needs, Student, split_flat
from fastmtt.student.heads import LossFunction, scalar_loss
from fastmtt.student.room import Tape


class ModuleStudent(Student):
    """A student computed by the module's own forward, one of the S weight vectors at a time.

    The tangent is the gradient of <grad_theta loss, v> in (theta, x, y): by symmetry of the second
    derivative that is Hv and both mixed products from one double backward, which more modules
    support than forward-mode differentiation does.
    """

    def __init__(
        self, module: nn.Module, loss_fn: LossFunction | None = None, *, bf16: bool = False
    ) -> None:
        """Wrap ``module``; raises NoStudentError if its training-mode forward is not a function.

        Args:
            module: any module mapping a batch to logits; used without its own weights.
            loss_fn: ``loss_fn(logits, labels) -> scalar``; None for cross-entropy.
            bf16: whether the module's forward runs under bfloat16 autocast.
        """
        super().__init__(module)
        _refuse_impure(module)
        self.module = module
        self.bf16 = bf16
        self.loss_fn: LossFunction = F.cross_entropy if loss_fn is None else loss_fn

    def gradient(
        self,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape | None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Student.gradient`."""
        losses, gradients = [], []
        for weights, images, labels in zip(theta, x, y, strict=True):
            with torch.enable_grad():
                leaf = weights.detach().requires_grad_()
                loss = self._loss(leaf, images.detach(), labels.detach())
                (g,) = torch.autograd.grad(loss, leaf)
            losses.append(loss.detach())
            gradients.append(g)
        return torch.stack(losses), torch.stack(gradients, out=into)

    def tangent(
        self,
        v: Tensor,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape | None = None,
        needs: Needs = EVERYTHING,
        into: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See :meth:`Student.tangent`."""
        wanted = [n for n in ("theta", "x", "y") if n in needs]
        if not y.is_floating_point() and "y" in wanted:
            wanted.remove("y")
        if not wanted:
            return None, None, None
        parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for direction, *inputs in zip(v, theta, x, y, strict=True):
            for name, g in self._one_tangent(direction, inputs, wanted).items():
                parts[name].append(g)
        stacked = {
            name: torch.stack(gs, out=into if name == "theta" else None)
            for name, gs in parts.items()
        }
        return stacked.get("theta"), stacked.get("x"), stacked.get("y")

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Student.logits`."""
        with torch.no_grad():
            pairs = zip(theta, x, strict=True)
            return torch.stack([self._forward(weights, images) for weights, images in pairs])

    def _one_tangent(
        self, direction: Tensor, inputs: list[Tensor], wanted: list[str]
    ) -> dict[str, Tensor]:
        leaves = {
            name: t.detach().requires_grad_(name == "theta" or name in wanted)
            for name, t in zip(("theta", "x", "y"), inputs, strict=True)
        }
        with torch.enable_grad():
            loss = self._loss(leaves["theta"], leaves["x"], leaves["y"])
            (g,) = torch.autograd.grad(loss, leaves["theta"], create_graph=True)
            if not g.requires_grad:  # a loss linear in all that is wanted has no curvature
                return {name: torch.zeros_like(leaves[name]) for name in wanted}
            tangents = torch.autograd.grad(
                g,
                [leaves[name] for name in wanted],
                direction,
                allow_unused=True,
                materialize_grads=True,
            )
        return dict(zip(wanted, tangents, strict=True))

    def _loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return scalar_loss(self.loss_fn, self._forward(theta, x), y)

    def _forward(self, theta: Tensor, x: Tensor) -> Tensor:
        return forward_at(self.module, theta, x, self.bf16)


def forward_at(module: nn.Module, theta: Tensor, x: Tensor, bf16: bool) -> Tensor:
    """The module's logits [B,K] for images [B,C,H,W], at weights [P] in place of its own."""
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    weights = dict(split_flat(theta, tuple(shapes), tuple(shapes.values())))
    with torch.autocast(theta.device.type, torch.bfloat16, enabled=bf16):
        logits: Tensor = functional_call(module, weights, (x,))
    return logits.to(theta.dtype)


def _refuse_impure(module: nn.Module) -> None:
    """A step is computed twice, on both sweeps: it must not draw numbers or keep statistics."""
    for path, part in module.named_modules():
        name = f"{path or 'the student'} is {type(part).__name__} in training mode"
        keeps_statistics = isinstance(part, nn.modules.batchnorm._NormBase) and (
            isinstance(part, nn.modules.batchnorm._BatchNorm) or part.track_running_stats
        )
        if keeps_statistics and part.training:
            raise NoStudentError(
                f"{name}, whose running statistics are not part of a trajectory: use GroupNorm or "
                "InstanceNorm in a student, or call .eval() on it first"
            )
        if isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0:
            raise NoStudentError(
                f"{name}, which draws anew each time a step is computed: call .eval() on it or "
                "take it out of the student"
            )
