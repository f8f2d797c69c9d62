"""The two verbs for the ConvNet family, composed of the ops."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmtt import ops
from fastmtt.student.base import EVERYTHING, Needs, Student, Tape, TapeOption
from fastmtt.student.heads import LossFunction, make_head
from fastmtt.student.structure import Structure


class _Block(NamedTuple):
    """One block's slices of packed vectors: weights, their bias, the norm's scale and shift."""

    w: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor


class ConvNetStudent(Student):
    """Blocks of conv3x3, instance norm, ReLU, average pool; a linear classifier; S at once.

    Packed order: the public order with each convolution's weights as HWIO and the classifier's
    columns in (H,W,C) order. The norm cancels the convolution's bias, so the bias has a zero
    gradient and takes no part in the arithmetic.
    """

    def __init__(
        self, module: nn.Module, structure: Structure, loss_fn: LossFunction | None = None
    ) -> None:
        """Build from a module whose structure was found by ``find_structure``."""
        super().__init__(module)
        self.structure = structure
        self.head = make_head(loss_fn)
        self.classes = structure.classes if loss_fn is None else None
        self._order, self._inverse = _packed_order(structure)

    def pack(self, flat: Tensor) -> Tensor:
        """See :meth:`Student.pack`."""
        return flat[..., self._order.to(flat.device)]

    def unpack(self, packed: Tensor) -> Tensor:
        """See :meth:`Student.unpack`."""
        return packed[..., self._inverse.to(packed.device)]

    def gradient(
        self, theta: Tensor, x: Tensor, y: Tensor, keep: Collection[Any] = ()
    ) -> tuple[Tensor, Tensor, Tape]:
        """See :meth:`Student.gradient`."""
        blocks, w, b = self._split(theta)
        a, inputs, norms = self._images(x), [], []
        for block in blocks:
            inputs.append(a)
            a, xhat, rstd = ops.conv_block(a, block.w, block.gamma, block.beta)
            norms.append((xhat, rstd))
        loss, (gf, gw, gb) = self.head.gradient(a.flatten(2), w, b, y)

        gradient = torch.zeros_like(theta)
        g_blocks, g_w, g_b = self._split(gradient)
        g_w.copy_(gw)
        g_b.copy_(gb)
        gp = gf.view_as(a)
        tape: Tape = {}
        for i in reversed(range(len(blocks))):
            block, (xhat, rstd) = blocks[i], norms.pop()
            if ("xhat", i) in keep:
                tape["xhat", i] = xhat, rstd
            gp, gw, ggamma, gbeta = ops.conv_block_backward(
                gp, inputs.pop(), block.w, block.gamma, block.beta, xhat, rstd, (i > 0, True)
            )
            if ("gp", i - 1) in keep:
                tape["gp", i - 1] = gp
            g_blocks[i].w.copy_(gw)
            g_blocks[i].gamma.copy_(ggamma)
            g_blocks[i].beta.copy_(gbeta)
        return loss, gradient, tape

    def tangent(
        self,
        v: Tensor,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape | None = None,
        needs: Needs = EVERYTHING,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See :meth:`Student.tangent`; recomputes what the tape lacks."""
        tape = tape or {}
        blocks, w, b = self._split(theta)
        directions, w_dot, b_dot = self._split(v)
        a, records = self._images(x), []
        a_dot: Any = None
        for i, (block, d) in enumerate(zip(blocks, directions, strict=True)):
            xhat, rstd = tape.get(("xhat", i), (None, None))
            p, p_dot, xhat_dot, rstd_dot, new_xhat, new_rstd = ops.conv_block_jvp(
                a, a_dot, block.w, d.w, block.gamma, d.gamma, block.beta, d.beta, xhat, rstd
            )
            if xhat is None:
                xhat, rstd = new_xhat, new_rstd
            records.append((a, a_dot, xhat, rstd, xhat_dot, rstd_dot))
            a, a_dot = p, p_dot
        gf_dot, gw_dot, gb_dot, gy_dot, gf = self.head.tangent(
            a.flatten(2), a_dot.flatten(2), w, w_dot, b, b_dot, y
        )

        need_theta, need_x = "theta" in needs, "x" in needs
        hv = torch.zeros_like(theta)
        h_blocks, h_w, h_b = self._split(hv)
        h_w.copy_(gw_dot)
        h_b.copy_(gb_dot)
        gp, gp_dot = gf.view_as(a), gf_dot.view_as(a)
        for i in reversed(range(len(blocks) if need_theta or need_x else 0)):
            block, d = blocks[i], directions[i]
            a, a_dot, xhat, rstd, xhat_dot, rstd_dot = records.pop()
            kept = tape.get(("gp", i - 1))
            ga_dot, gw_dot, ggamma_dot, gbeta_dot, ga = ops.conv_block_backward_jvp(
                gp,
                gp_dot,
                a,
                a_dot,
                block.w,
                d.w,
                block.gamma,
                d.gamma,
                block.beta,
                xhat,
                rstd,
                xhat_dot,
                rstd_dot,
                (i > 0 or need_x, need_theta, i > 0 and kept is None),
            )
            if need_theta:
                h_blocks[i].w.copy_(gw_dot)
                h_blocks[i].gamma.copy_(ggamma_dot)
                h_blocks[i].beta.copy_(gbeta_dot)
            gp, gp_dot = ga if kept is None else kept, ga_dot
        return (
            hv if need_theta else None,
            self._images_back(gp_dot) if need_x else None,
            gy_dot if "y" in needs else None,
        )

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Student.logits`."""
        with torch.no_grad():
            return self.forward(theta, x, lambda *inputs: ops.conv_block(*inputs)[0])

    def forward(self, theta: Tensor, x: Tensor, block_fn: Callable[..., Tensor]) -> Tensor:
        """Logits [S,B,K] with ``block_fn`` computing each block's (a, w, gamma, beta)."""
        blocks, w, b = self._split(theta)
        a = self._images(x)
        for block in blocks:
            a = block_fn(a, block.w, block.gamma, block.beta)
        return a.flatten(2) @ w.mT + b[:, None]

    def tape_options(self, x: Tensor) -> list[TapeOption]:
        """Normalised outputs spare a convolution, pooled cotangents an input gradient.

        The first block's outputs are the largest and spare the least; they are never kept.
        """
        height, width = x.shape[-2:]
        channels, border = self.structure.channels, self.structure.border
        height, width = height + 2 * border, width + 2 * border
        options = []
        for i in range(1, self.structure.depth):
            height, width = height // 2, width // 2
            flops = 2.0 * 9 * height * width * channels[i] * channels[i + 1]
            normalised = (height * width + 1) * channels[i + 1]
            pooled = height * width * channels[i]
            options += [
                TapeOption(("xhat", i), normalised * x.element_size(), flops),
                TapeOption(("gp", i - 1), pooled * x.element_size(), flops),
            ]
        return sorted(options, key=lambda option: -option.flops / option.bytes)

    def _images(self, x: Tensor) -> Tensor:
        """[S,B,C,H,W] -> [S,B,H,W,C], with the border of zeros where the first block has one."""
        border = self.structure.border
        return F.pad(x, (border,) * 4).permute(0, 1, 3, 4, 2).contiguous()

    def _images_back(self, g: Tensor) -> Tensor:
        border = self.structure.border
        g = g.permute(0, 1, 4, 2, 3)
        return F.pad(g, (-border,) * 4).contiguous()

    def _split(self, packed: Tensor) -> tuple[list[_Block], Tensor, Tensor]:
        """Views of packed vectors [S,P]: the blocks, the classifier's W [S,K,D] and b [S,K]."""
        students, offset = packed.shape[0], 0

        def take(*shape: int) -> Tensor:
            nonlocal offset
            start = offset
            offset += torch.Size(shape).numel()
            return packed[:, start:offset].view(students, *shape)

        channels = self.structure.channels
        blocks = [
            _Block(take(3, 3, c_in, c_out), take(c_out), take(c_out), take(c_out))
            for c_in, c_out in zip(channels[:-1], channels[1:], strict=True)
        ]
        height, width = self.structure.grid
        w = take(self.structure.classes, height * width * channels[-1])
        return blocks, w, take(self.structure.classes)


@cache
@torch.inference_mode(False)  # kept for good: an inference tensor would spoil later training
def _packed_order(structure: Structure) -> tuple[Tensor, Tensor]:
    """Position in the public flat vector of each packed entry, int64 [P], and the inverse."""
    pieces, offset = [], 0

    def take(*shape: int) -> Tensor:
        nonlocal offset
        start = offset
        offset += torch.Size(shape).numel()
        return torch.arange(start, offset).view(shape)

    channels = structure.channels
    for c_in, c_out in zip(channels[:-1], channels[1:], strict=True):
        pieces += [take(c_out, c_in, 3, 3).permute(2, 3, 1, 0)]
        pieces += [take(c_out), take(c_out), take(c_out)]
    pieces += [take(structure.classes, channels[-1], *structure.grid).permute(0, 2, 3, 1)]
    pieces += [take(structure.classes)]
    order = torch.cat([piece.reshape(-1) for piece in pieces])
    return order, order.argsort()
