"""One network trained the ordinary way: with running statistics and draws of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmtt.student.module import forward_at


class SingleNetwork:
    """What training needs of a network, for one that is trained alone and never differentiated.

    Steps are taken in training mode, tests in evaluation mode; the module's buffers, such as a
    batch norm's statistics, follow the training. No student could be it: a student's step is
    computed again on the way back and must be a function of its weights.
    """

    def __init__(self, module: nn.Module, *, bf16: bool = False) -> None:
        """Take ``module`` over, with its buffers as they are and without its weights.

        Args:
            module: from images [B,C,H,W] to logits [B,K], where they are.
            bf16: whether its forward runs under bfloat16 autocast.
        """
        self.module, self.bf16 = module, bf16

    def pack(self, flat: Tensor) -> Tensor:
        """Flat vectors [1,P] are computed with as they are."""
        return flat

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of :meth:`pack`."""
        return packed

    def gradient(
        self,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss [1] and its gradient [1,P]; the module's buffers move on by one step.

        Args:
            theta: weights [1,P].
            x: images [1,B,C,H,W].
            y: labels, int64 [1,B] or probabilities [1,B,K].
            tape: a student's; nothing is kept here.
            into: where to write the gradient; None for a fresh tensor.
        """
        self.module.train()
        with torch.enable_grad():
            leaf = theta[0].detach().requires_grad_()
            loss = F.cross_entropy(forward_at(self.module, leaf, x[0], self.bf16), y[0])
            (gradient,) = torch.autograd.grad(loss, leaf)
        row = gradient[None]
        return loss.detach()[None], row if into is None else into.copy_(row)

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs [1,B,K] in evaluation mode, without a graph."""
        self.module.eval()
        with torch.no_grad():
            return forward_at(self.module, theta[0], x[0], self.bf16)[None]
