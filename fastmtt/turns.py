"""A momentum optimiser over the images of all classes, of which one after another has its turn.

IDC's program (Kim et al., ICML 2022) matches class after class, and lets one SGD over all images
step each time: a class's gradient moves its own images, and the momentum moves all the others. As
nothing that a class matches depends on another class's images, all can be matched at once: each on
its images as they will be when its turn comes. With the velocity v, n steps of momentum m alone
lead to x - rate * (m + ... + m^n) v with the velocity m^n v.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Turns:
    """A round of K turns, class 0 first.

    Args:
        classes: K.
        rate: the learning rate.
        momentum: SGD's m.
        like: gives the images' dtype and device.
    """

    def __init__(self, classes: int, rate: float, momentum: float, like: Tensor) -> None:
        """Work out the steps once."""
        self.rate = rate
        powers = torch.tensor([momentum**n for n in range(classes + 1)], dtype=torch.float64)
        drifts = torch.cat([powers.new_zeros(1), powers[1:].cumsum(0)])
        turn = torch.arange(classes)
        self._drift_before, self._drift_after, self._power_to, self._power_after = (
            values[:, None, None, None, None].to(like)
            for values in (
                drifts[turn],
                drifts[classes - 1 - turn],
                powers[turn + 1],
                powers[classes - 1 - turn],
            )
        )

    def wait(self, images: Tensor, velocity: Tensor) -> None:
        """Bring images [K,n,C,H,W], in place, to where they are when their class's turn comes."""
        images -= self.rate * self._drift_before * velocity

    def take(self, images: Tensor, velocity: Tensor, g: Tensor) -> None:
        """Take every turn's step by its class's gradient, and go through the rest of the round.

        Args:
            images: [K,n,C,H,W] as :meth:`wait` left them; moved in place.
            velocity: as it was before the round; moved in place.
            g: the gradient of each class's turn.
        """
        velocity.mul_(self._power_to).add_(g)
        images -= self.rate * (1 + self._drift_after) * velocity
        velocity.mul_(self._power_after)
