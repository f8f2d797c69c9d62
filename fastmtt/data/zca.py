"""ZCA whitening, fitted once on a data set's training images and kept in the cache.

The published programs fit it at every start, on different devices, and so get slightly different
matrices at the stages of one experiment; here one fit, on the CPU, serves all of them.
"""

import hashlib
import warnings
from pathlib import Path

from torch import Tensor

from fastmtt.data.spaces import ZCA_EPS, Whitened, load_space, new_zca
from fastmtt.errors import FastmttError
from fastmtt.files import cache_folder
from fastmtt.progress import say


def fit_zca(pixels: Tensor, *, show: bool = True) -> Whitened:
    """Fit ZCA on training images, or take the fit of the very same images from the cache.

    mu = mean, Sigma = (X - mu)^T (X - mu) / (n - 1) = U S U^T, T = U (S + eps)^-1/2 U^T.

    Args:
        pixels: [n,C,H,W] float32 in [0,1] on the CPU, n at least 2; one copy is made meanwhile.
        show: Say on stderr that fitting takes a while.
    """
    digest = _digest(pixels)
    cache = cache_folder() / f"zca_{digest}.safetensors"
    fitted = _cached(cache, digest)
    if fitted is not None:
        return fitted
    if show:
        features = pixels[0].numel()
        say(f"fitting ZCA on {len(pixels)} images of {features} values, once; kept in {cache}")
    whitened = Whitened(new_zca().fit(pixels), digest)
    try:
        whitened.save(cache)
    except OSError as error:
        warnings.warn(f"the ZCA fit could not be kept ({error}); set FASTMTT_CACHE", stacklevel=2)
    return whitened


def _digest(pixels: Tensor) -> str:
    state = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)} {ZCA_EPS}".encode())
    state.update(pixels.contiguous().numpy().data)
    return state.hexdigest()[:32]


def _cached(cache: Path, digest: str) -> Whitened | None:
    if not cache.exists():
        return None
    try:
        space = load_space(cache)
        if isinstance(space, Whitened) and space.digest == digest:
            return space
        reason = f"{cache} holds the fit of other images"
    except FastmttError as error:
        reason = str(error)
    warnings.warn(f"fitting ZCA again: {reason}", stacklevel=3)
    return None
