"""The two verbs for the ConvNet family, composed of the ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmtt import ops
from fastmtt.ops import backends
from fastmtt.student.base import EVERYTHING, Needs, Student, TapeOption
from fastmtt.student.heads import LossFunction, make_head
from fastmtt.student.packing import Block, packed_order, split_packed
from fastmtt.student.parts import Part, joined, parts_of
from fastmtt.student.room import Room, Tape
from fastmtt.student.structure import Structure


class ConvNetStudent(Student):
    """Blocks of conv3x3, instance norm, ReLU, average pool; a linear classifier; S at once.

    Packed order: the public order with each convolution's weights as HWIO and the classifier's
    columns in (H,W,C) order. The norm cancels the convolution's bias, so the bias has a zero
    gradient and takes no part in the arithmetic.
    """

    def __init__(
        self,
        module: nn.Module,
        structure: Structure,
        loss_fn: LossFunction | None = None,
        *,
        bf16: bool = False,
        room: Room | None = None,
    ) -> None:
        """Build from a module whose structure was found by ``find_structure``.

        Args:
            module: the network; its weights are not used.
            structure: what was found.
            loss_fn: as for ``make_student``.
            bf16: whether float32 convolutions multiply in bfloat16.
            room: memory to compute in, for one call at a time; None for the student's own.
        """
        super().__init__(module)
        self.structure = structure
        self.head = make_head(loss_fn)
        self.classes = structure.classes if loss_fn is None else None
        self.bf16 = bf16
        self.room = Room() if room is None else room

    def pack(self, flat: Tensor) -> Tensor:
        """See :meth:`Student.pack`."""
        return flat[..., packed_order(self.structure, flat.device)[0]]

    def unpack(self, packed: Tensor) -> Tensor:
        """See :meth:`Student.unpack`."""
        return packed[..., packed_order(self.structure, packed.device)[1]]

    def gradient(
        self,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape | None = None,
        into: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Student.gradient`."""
        gradient = torch.empty_like(theta) if into is None else into
        loss = theta.new_zeros(len(theta))
        for part in self._parts(x):
            place = gradient if part.number == 0 else self.room.tensor("part", theta.shape, theta)
            part_loss = self._gradient(
                theta, part.of(x), part.of(y), Tape() if tape is None else tape, part.number, place
            )
            loss.add_(part_loss, alpha=part.weight)
            part.add(place, gradient)
        return loss, gradient

    def _gradient(
        self, theta: Tensor, x: Tensor, y: Tensor, tape: Tape, part: int, gradient: Tensor
    ) -> Tensor:
        """One part's loss, its gradient written to ``gradient``."""
        blocks, w, b = self._split(theta)
        g_blocks, g_w, g_b = self._split(gradient)
        a, inputs, norms = self._images(x), [], []
        for i, block in enumerate(blocks):
            inputs.append(a)
            kept = tape.room if ("xhat", i) in tape.keep else self.room
            a, *norm = self._run(i, a, block, kept, part if kept is tape.room else None)
            norms.append(norm)
        loss, (gf, gw, gb) = self.head.gradient(a.flatten(2), w, b, y)
        g_w.copy_(gw)
        g_b.copy_(gb)
        gp = gf.view_as(a)
        for i in reversed(range(len(blocks))):
            block, g, a = blocks[i], g_blocks[i], inputs.pop()
            kept_gp = ("gp", i - 1) in tape.keep
            name = ("gp", i - 1, part if kept_gp else None)
            ga = (tape.room if kept_gp else self.room).tensor(name, a.shape, a)
            ops.conv_block_backward(
                gp,
                a,
                block.w,
                block.gamma,
                block.beta,
                *norms.pop(),
                (i > 0, True),
                self.bf16,
                into=(ga, g.w, g.gamma, g.beta, self.room.scratch(a)),
            )
            gp = ga
        torch._foreach_zero_([g.bias for g in g_blocks])  # in one launch
        return loss

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
        """See :meth:`Student.tangent`; recomputes what the tape lacks."""
        hv = torch.empty_like(theta) if into is None else into
        gx, gy = [], []
        for part in self._parts(x):
            place = hv if part.number == 0 else self.room.tensor("part", theta.shape, theta)
            part_gx, part_gy = self._tangent(
                v,
                theta,
                part.of(x),
                part.of(y),
                Tape() if tape is None else tape,
                part.number,
                needs,
                place,
            )
            if "theta" in needs:
                part.add(place, hv)
            gx.append(part.scaled(part_gx))
            gy.append(part.scaled(part_gy))
        return hv if "theta" in needs else None, joined(gx), joined(gy)

    def _tangent(
        self,
        v: Tensor,
        theta: Tensor,
        x: Tensor,
        y: Tensor,
        tape: Tape,
        part: int,
        needs: Needs,
        hv: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One part's tangents of x and y, that of theta written to ``hv``."""
        blocks, w, b = self._split(theta)
        directions, w_dot, b_dot = self._split(v)
        a, records = self._images(x), []
        a_dot: Tensor | None = None
        for i, (block, d) in enumerate(zip(blocks, directions, strict=True)):
            known = ("xhat", i) in tape.keep
            room = tape.room if known else self.room
            p, xhat, rstd = self._outputs(i, a, block, room, part if known else None)
            p = self.room.tensor(("p", i), p.shape, a)
            dots = [
                self.room.tensor((name, i), like.shape, a)
                for name, like in (("p_dot", p), ("xhat_dot", xhat), ("rstd_dot", rstd))
            ]
            none = self.room.tensor("nothing", (0,), a)
            ops.conv_block_jvp(
                a,
                a_dot,
                block.w,
                d.w,
                block.gamma,
                d.gamma,
                block.beta,
                d.beta,
                xhat if known else None,
                rstd if known else None,
                self.bf16,
                into=(
                    p,
                    *dots,
                    none if known else xhat,
                    none if known else rstd,
                    self.room.scratch(a),
                ),
            )
            p_dot, xhat_dot, rstd_dot = dots
            records.append((a, a_dot, xhat, rstd, xhat_dot, rstd_dot))
            a, a_dot = p, p_dot
        assert a_dot is not None
        gf_dot, gw_dot, gb_dot, gy_dot, gf = self.head.tangent(
            a.flatten(2), a_dot.flatten(2), w, w_dot, b, b_dot, y
        )

        need_theta, need_x = "theta" in needs, "x" in needs
        h_blocks, h_w, h_b = self._split(hv)
        if need_theta:
            h_w.copy_(gw_dot)
            h_b.copy_(gb_dot)
        gp, gp_dot = gf.view_as(a), gf_dot.view_as(a)
        for i in reversed(range(len(blocks) if need_theta or need_x else 0)):
            block, d, h = blocks[i], directions[i], h_blocks[i]
            a, a_dot, xhat, rstd, xhat_dot, rstd_dot = records.pop()
            known = ("gp", i - 1) in tape.keep
            ga = (tape.room if known else self.room).tensor(
                ("gp", i - 1, part if known else None), a.shape, a
            )
            ga_dot = self.room.tensor(("gp_dot", i - 1), a.shape, a)
            ops.conv_block_backward_jvp(
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
                (i > 0 or need_x, need_theta, i > 0 and not known),
                self.bf16,
                into=(ga_dot, h.w, h.gamma, h.beta, ga, self.room.scratch(a)),
            )
            gp, gp_dot = ga, ga_dot
        if need_theta:
            torch._foreach_zero_([h.bias for h in h_blocks])
        return (
            self._images_back(gp_dot) if need_x else None,
            gy_dot if "y" in needs else None,
        )

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """See :meth:`Student.logits`."""
        blocks, w, b = self._split(theta)
        found = []
        with torch.no_grad():
            for part in self._parts(x):
                a = self._images(part.of(x))
                for i, block in enumerate(blocks):
                    a, *_ = self._run(i, a, block, self.room, None)
                found.append(a.flatten(2) @ w.mT + b[:, None])
        return torch.cat(found, 1)

    def forward(self, theta: Tensor, x: Tensor, block_fn: Callable[..., Tensor]) -> Tensor:
        """Logits [S,B,K] with ``block_fn`` computing each block's (a, w, gamma, beta)."""
        blocks, w, b = self._split(theta)
        a = self._images(x)
        for block in blocks:
            a = block_fn(a, block.w, block.gamma, block.beta)
        return a.flatten(2) @ w.mT + b[:, None]

    def tape_options(self, x: Tensor) -> list[TapeOption]:
        """Normalised outputs spare a convolution, pooled cotangents an input gradient.

        The first block's outputs are the largest and spare the least; they are never kept, nor
        are outputs that no op needs.
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
            if not backends.without_outputs(channels[i], x):
                options.append(TapeOption(("xhat", i), normalised * x.element_size(), flops))
            options.append(TapeOption(("gp", i - 1), pooled * x.element_size(), flops))
        return sorted(options, key=lambda option: -option.flops / option.bytes)

    def _parts(self, x: Tensor) -> list[Part]:
        batch, border = x.shape[1], 2 * self.structure.border
        if not self.head.separable:
            return [Part(0, 0, batch, batch)]
        area = (x.shape[3] + border) * (x.shape[4] + border)
        plane = area * self.structure.channels[1] * x.element_size()
        return parts_of(batch, plane, x.device.type)

    def _run(
        self, i: int, a: Tensor, block: Block, room: Room, part: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Block i's pooled output, normalised output and 1/std."""
        places = self._outputs(i, a, block, room, part)
        ops.conv_block(
            a, block.w, block.gamma, block.beta, self.bf16, into=(*places, self.room.scratch(a))
        )
        return places

    def _outputs(
        self, i: int, a: Tensor, block: Block, room: Room, part: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Places for block i's pooled output, normalised output and 1/std, the latter in room.

        The normalised output is empty where no op needs it.
        """
        students, images, height, width, _ = a.shape
        channels = block.w.shape[-1]
        pooled = students, images, height // 2, width // 2, channels
        left_out = backends.without_outputs(a.shape[-1], a)
        outputs = (0,) if left_out else (students, images, height, width, channels)
        return (
            self.room.tensor(("p", i), pooled, a),
            room.tensor(("xhat", i, part), outputs, a),
            room.tensor(("rstd", i, part), (students, images, channels), a),
        )

    def _images(self, x: Tensor) -> Tensor:
        """[S,B,C,H,W] -> [S,B,H,W,C], with the border of zeros where the first block has one."""
        border = self.structure.border
        *front, channels, height, width = x.shape
        shape = (*front, height + 2 * border, width + 2 * border, channels)
        images = self.room.tensor("images", shape, x)
        if border:
            images.zero_()
        inner = images.narrow(2, border, height).narrow(3, border, width)
        inner.copy_(x.permute(0, 1, 3, 4, 2))
        return images

    def _images_back(self, g: Tensor) -> Tensor:
        border = self.structure.border
        g = g.permute(0, 1, 4, 2, 3)
        inner = g[..., border : g.shape[-2] - border, border : g.shape[-1] - border]
        return inner.clone(memory_format=torch.contiguous_format)

    def _split(self, packed: Tensor) -> tuple[list[Block], Tensor, Tensor]:
        return split_packed(packed, self.structure)
