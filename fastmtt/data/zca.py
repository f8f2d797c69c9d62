"""ZCA whitening, fitted once on a data set's training images and kept in the cache.

The published programs fit it at every start, on different devices, and so get slightly different
matrices at the stages of one experiment; here one fit, on the CPU, serves all of them.
"""

import hashlib
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from fastmtt.data.images import as_pixels
from fastmtt.data.memory import require
from fastmtt.data.spaces import ZCA_EPS, Whitened, load_space, new_zca
from fastmtt.errors import FastmttError
from fastmtt.files import cache_folder
from fastmtt.progress import progress, say

_PART = 1024  # images summed at a time
# Measured at 3072 features: covariance, eigenvectors and LAPACK's work space, all float64.
_BYTES_A_PAIR = 32


def fit_zca(images: Tensor, white: int = 1, *, show: bool = True) -> Whitened:
    """Fit ZCA on training images, or take the fit of the very same images from the cache.

    mu = mean, Sigma = (X - mu)^T (X - mu) / (n - 1) = U S U^T, T = U (S + eps)^-1/2 U^T, as
    kornia's `ZCAWhitening.fit`, whose every result is within rounding of this one. Sigma is summed
    over parts of the images and decomposed as the symmetric matrix it is, both in float64: it
    takes a fraction of kornia's memory, and no float copy of the images.

    Args:
        images: [n,C,H,W] on the CPU, n at least 2: uint8, or float32 in [0,1].
        white: The value that means 1.0.
        show: Say on stderr that fitting takes a while.

    Raises:
        FastmttError: There is a single image, or the matrices do not fit in memory.
    """
    if len(images) < 2:
        raise FastmttError(f"ZCA wants two training images or more, got {len(images)}; zca false")
    digest = _digest(images, white)
    cache = cache_folder() / f"zca_{digest}.safetensors"
    fitted = _cached(cache, digest)
    if fitted is not None:
        return fitted
    features = images[0].numel()
    require(
        _BYTES_A_PAIR * features**2 + 4 * 3 * features * min(_PART, len(images)),
        f"ZCA over images of {features} values ({features} x {features} matrices)",
        "set zca to false, or choose a lower res",
    )
    if show:
        say(f"fitting ZCA on {len(images)} images of {features} values, once; kept in {cache}")
    zca = new_zca()
    zca.load_state_dict(_fit(images, white, show))
    whitened = Whitened(zca, digest)
    try:
        whitened.save(cache)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the ZCA fit could not be kept ({error}); set FASTMTT_CACHE", stacklevel=2)
    return whitened


def _fit(images: Tensor, white: int, show: bool) -> dict[str, Tensor]:
    """Give kornia's mean_vector [1,F], transform_matrix and transform_inv [F,F], float32."""
    parts = images.split(_PART)
    total = sum(as_pixels(part, white).sum(0, dtype=torch.float64) for part in parts)
    mean = (torch.as_tensor(total) / len(images)).float().flatten()
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in progress(parts, desc="ZCA: covariance") if show else parts:
        centred = as_pixels(part, white).flatten(1).sub_(mean)
        covariance.add_(centred.T @ centred)
    covariance /= len(images) - 1
    values, vectors = torch.linalg.eigh(covariance)
    root = values.clamp_(min=0).add_(ZCA_EPS).sqrt_()  # rounding leaves the smallest below zero
    return {
        "mean_vector": mean[None],
        "transform_matrix": ((vectors / root) @ vectors.T).float(),
        "transform_inv": ((vectors * root) @ vectors.T).float(),
    }


def _digest(images: Tensor, white: int) -> str:
    """Name the pixels: the same for integers and for the floats in [0,1] they mean."""
    state = hashlib.sha256(f"{torch.float32} {tuple(images.shape)} {ZCA_EPS}".encode())
    for part in images.split(_PART):
        state.update(as_pixels(part, white).contiguous().numpy().data)
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
