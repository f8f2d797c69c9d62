"""IDC's augmentation: DSA's operations in another composition (arXiv 2205.14959)."""

from __future__ import annotations

from collections.abc import Sequence

from fastmtt.augment import DSA, FULL, Integers, Parameters, Uniform
from fastmtt.errors import FastmttError

_ALWAYS_FIRST, _ALWAYS_LAST = ("flip", "color"), ("cutout",)


class DiffAug(DSA):
    """Flip and colour always, then one of crop, scale and rotation, then cutout always.

    Of each only what the strategy lists. IDC samples its zoom and rotation without aligned corners.
    Between pixel centres both conventions are the same map, but for a rotation of an image that is
    not square.

    Args:
        strategy: operations joined by ``_``, or "none".
        shared: whether a batch's images share one draw (IDC's ``batch=True``), which
            :func:`for_batch` gives to the other batch of a match.

    Raises:
        FastmttError: an operation is unknown, or images to rotate are not square.
    """

    def __init__(self, strategy: str = FULL, *, shared: bool = False) -> None:
        """Take the published constants."""
        super().__init__(strategy)
        self.shared = shared

    def _draw(
        self, uniform: Uniform, integers: Integers, batch: int, image_shape: Sequence[int]
    ) -> Parameters:
        if "rotate" in self.names and image_shape[1] != image_shape[2]:
            raise FastmttError(
                f"IDC's rotation is made for square images, got {tuple(image_shape)}; "
                "leave 'rotate' out of the strategy"
            )
        first = [name for name in _ALWAYS_FIRST if name in self.names]
        last = [name for name in _ALWAYS_LAST if name in self.names]
        others = [name for name in self.names if name not in (*first, *last)]
        one = [others[integers(0, len(others), 1)[0]]] if others else []
        count = 1 if self.shared else batch
        drawn = self._parameters([*first, *one, *last], uniform, integers, count, image_shape)
        return for_batch(drawn, batch) if self.shared else drawn


def for_batch(parameters: Parameters, batch: int) -> Parameters:
    """A shared draw for so many images."""
    values = parameters.values[:, :, :1].expand(-1, -1, batch, -1)
    return Parameters(parameters.kind, values.contiguous())


def without(strategy: str, *names: str) -> str:
    """The strategy less these operations: no cutout beside CutMix, no flip of digits."""
    return "_".join(name for name in strategy.split("_") if name not in names) or "none"
