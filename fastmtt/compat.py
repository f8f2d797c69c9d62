"""For loops that stay as they are: the field's ReparamModule with compiled blocks underneath."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from fastmtt.ops import backends, differentiable
from fastmtt.student import ConvNetStudent, find_structure, flatten_parameters
from fastmtt.student.base import split_flat
from fastmtt.student.structure import Structure

__all__ = ["ReparamModule"]


class ReparamModule(nn.Module):
    """A module whose weights are one flat vector, given at each call or held as ``flat_param``.

    Same constructor and ``flat_param=`` call as the published programs' class, order of
    ``named_parameters()``. Differentiable twice through weights and inputs, so that
    ``autograd.grad(create_graph=True)`` unrolls work unchanged; the memory of such an unroll is
    still autograd's. For constant memory use ``fastmtt.unroll_sgd``.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take over ``module``; its own parameters are copied into ``flat_param``."""
        super().__init__()
        self._module = (module,)
        self.names = tuple(name for name, _ in module.named_parameters())
        self.shapes = tuple(tuple(p.shape) for p in module.parameters())
        self.flat_param = nn.Parameter(flatten_parameters(module))
        self.param_numel = self.flat_param.numel()

    def train(self, mode: bool = True) -> ReparamModule:
        """Set the mode of the module inside as well."""
        self._module[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> ReparamModule:
        # .to(), .cuda(), .double(): the module inside is no child, but follows
        self._module[0]._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self,
        *inputs: Any,
        flat_param: Tensor | None = None,
        buffers: dict[str, Tensor] | None = None,
    ) -> Any:
        """The module's output at the given weights.

        Args:
            inputs: the module's own.
            flat_param: weights [P] (any shape with P elements); None for those held.
            buffers: the module's buffers by name; None for its own.
        """
        flat = (self.flat_param if flat_param is None else flat_param).reshape(-1)
        if flat.numel() != self.param_numel:
            raise ValueError(f"flat_param must hold {self.param_numel} values, got {flat.numel()}")
        x = inputs[0] if len(inputs) == 1 else None
        if isinstance(x, Tensor) and x.dim() == 4 and x.dtype == flat.dtype:
            structure = find_structure(self._module[0], tuple(x.shape[1:]))
            if isinstance(structure, Structure):
                student = ConvNetStudent(self._module[0], structure)
                with backends.use(None):
                    theta = student.pack(flat)[None]
                    return student.forward(theta, x[None], differentiable.conv_block)[0]
        weights = dict(split_flat(flat, self.names, self.shapes))
        return functional_call(self._module[0], {**weights, **(buffers or {})}, inputs)
