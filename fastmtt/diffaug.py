"""IDC's augmentation: DSA's operations in another composition (arXiv 2205.14959)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmtt.augment import DSA, Integers, Parameters, Uniform

_ALWAYS_FIRST, _ALWAYS_LAST = ("flip", "color"), ("cutout",)


class DiffAug(DSA):
    """Flip and colour always, then one of crop, scale and rotation, then cutout always.

    Of each only what the strategy lists. On square images its zoom and rotation, made without
    aligned corners, are DSA's.

    Args:
        strategy: operations joined by ``_``, or "none".
        shared: whether a batch's images share one draw, as real and synthetic ones of a match do.
    """

    def __init__(self, strategy: str, *, shared: bool = False) -> None:
        """Take the published constants."""
        super().__init__(strategy)
        self.shared = shared

    def _draw(
        self, uniform: Uniform, integers: Integers, batch: int, image_shape: Sequence[int]
    ) -> Parameters:
        first = [name for name in _ALWAYS_FIRST if name in self.names]
        last = [name for name in _ALWAYS_LAST if name in self.names]
        others = [name for name in self.names if name not in (*first, *last)]
        one = [others[integers(0, len(others), 1)[0]]] if others else []
        count = 1 if self.shared else batch
        drawn = self._parameters([*first, *one, *last], uniform, integers, count, image_shape)
        return for_batch(drawn, batch) if self.shared else drawn


def for_batch(parameters: Parameters, batch: int) -> Parameters:
    """A shared draw for so many images."""
    values: Tensor = parameters.values[:, :, :1].expand(-1, -1, batch, -1)
    return Parameters(parameters.kind, values.contiguous())
