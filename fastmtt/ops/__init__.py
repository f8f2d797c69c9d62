"""The ops of the engine, as functions: same names and arguments as in :mod:`.reference`.

Each call goes to the backend that serves it best (:mod:`.backends`). They are first-order blocks of
arithmetic without autograd; :mod:`.differentiable` wraps the block for callers who need a graph.
"""

from __future__ import annotations

from functools import partial

from fastmtt.ops import backends, reference
from fastmtt.ops.backends import use

conv_block = partial(backends.call, "conv_block")
conv_block_backward = partial(backends.call, "conv_block_backward")
conv_block_jvp = partial(backends.call, "conv_block_jvp")
conv_block_backward_jvp = partial(backends.call, "conv_block_backward_jvp")
linear_xent = partial(backends.call, "linear_xent")
linear_xent_backward = partial(backends.call, "linear_xent_backward")
linear_xent_jvp = partial(backends.call, "linear_xent_jvp")
linear_xent_backward_jvp = partial(backends.call, "linear_xent_backward_jvp")
sgd_update = partial(backends.call, "sgd_update")
sgd_momentum = partial(backends.call, "sgd_momentum")
dot = partial(backends.call, "dot")
sqdist = partial(backends.call, "sqdist")
dsa = partial(backends.call, "dsa")
dsa_transpose = partial(backends.call, "dsa_transpose")
gsam_perturb = partial(backends.call, "gsam_perturb")
gsam_combine = partial(backends.call, "gsam_combine")

__all__ = [*reference.__all__, "use"]
