"""The order in which the ConvNet student holds its weights: what the ops want, laid end to end."""

from __future__ import annotations

from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fastmtt.student.structure import Structure


class Block(NamedTuple):
    """One block's slices of packed vectors: weights, their bias, the norm's scale and shift."""

    w: Tensor
    bias: Tensor
    gamma: Tensor
    beta: Tensor


def split_packed(packed: Tensor, structure: Structure) -> tuple[list[Block], Tensor, Tensor]:
    """Views of packed vectors [S,P]: the blocks, the classifier's W [S,K,D] and b [S,K]."""
    shapes, sizes = packed_shapes(structure)
    pieces = packed.split_with_sizes(sizes, 1)
    views = [piece.view(-1, *shape) for piece, shape in zip(pieces, shapes, strict=True)]
    blocks = [Block(*views[i : i + 4]) for i in range(0, len(views) - 2, 4)]
    return blocks, views[-2], views[-1]


@cache
def packed_shapes(structure: Structure) -> tuple[list[tuple[int, ...]], list[int]]:
    """Shape and size of every piece of a packed vector, in its order."""
    shapes: list[tuple[int, ...]] = []
    channels = structure.channels
    for c_in, c_out in zip(channels[:-1], channels[1:], strict=True):
        shapes += [(3, 3, c_in, c_out), (c_out,), (c_out,), (c_out,)]
    height, width = structure.grid
    shapes += [(structure.classes, height * width * channels[-1]), (structure.classes,)]
    return shapes, [prod(shape) for shape in shapes]


@cache
@torch.inference_mode(False)  # kept for good: an inference tensor would spoil later training
def packed_order(structure: Structure, device: torch.device) -> tuple[Tensor, Tensor]:
    """Position in the public flat vector of each packed entry, int64 [P], and the inverse."""
    offset = 0

    def take(*shape: int) -> Tensor:
        nonlocal offset
        start = offset
        offset += torch.Size(shape).numel()
        return torch.arange(start, offset).view(shape)

    channels = structure.channels

    def conv(block: int) -> list[Tensor]:
        c_in, c_out = channels[block : block + 2]
        return [take(c_out, c_in, 3, 3).permute(2, 3, 1, 0), take(c_out)]

    def norm(block: int) -> list[Tensor]:
        return [take(channels[block + 1]), take(channels[block + 1])]

    blocks = range(structure.depth)
    if structure.grouped:
        convs, norms = [conv(i) for i in blocks], [norm(i) for i in blocks]
        parts = list(zip(convs, norms, strict=True))
    else:
        parts = [(conv(i), norm(i)) for i in blocks]
    pieces = [piece for of_conv, of_norm in parts for piece in (*of_conv, *of_norm)]
    pieces += [take(structure.classes, channels[-1], *structure.grid).permute(0, 2, 3, 1)]
    pieces += [take(structure.classes)]
    order = torch.cat([piece.reshape(-1) for piece in pieces])
    return order.to(device), order.argsort().to(device)
