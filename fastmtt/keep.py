"""PAD's choice of the weights that count in matching (Li et al. 2024, arXiv 2408.03360)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def but_smallest(ratio: float) -> Callable[[Tensor], Tensor]:
    """Drop the int(ratio * P) smallest squared distances (PAD_loss), chosen anew at every match.

    Args:
        ratio: in [0, 1).

    Returns:
        What gives of squares [P] the indices int64 that are kept, for a matcher's ``keep``.
    """
    return lambda squares: squares.argsort(stable=True)[int(ratio * len(squares)) :]


def but_first(ratio: float, size: int) -> Tensor:
    """Drop the first int(ratio * P) weights (PAD_depth): a boolean mask [P] in flat order.

    The cut counts weights and may fall inside a layer, as in the published program.

    Args:
        ratio: in [0, 1).
        size: P.
    """
    return torch.arange(size) >= int(ratio * size)
