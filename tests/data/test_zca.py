"""ZCA against its formula in float64, and its cache."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastmtt.data.spaces import new_zca
from fastmtt.data.zca import fit_zca
from fastmtt.errors import FastmttError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(count: int = 300, seed: int = 0) -> torch.Tensor:
    """Correlated pixels in [0,1], as natural images have."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    return (0.8 * smooth + 0.2 * noise[:, :1]).clamp(0, 1)


def formula(fitted: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(X - mu) U (S + 0.1)^-1/2 U^T by the symmetric eigensolver, and the inverse's matrix."""
    x = fitted.reshape(len(fitted), -1).astype(np.float64)
    mean = x.mean(axis=0)
    covariance = (x - mean).T @ (x - mean) / (len(x) - 1)
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values + 0.1)) @ vectors.T
    white = (images.reshape(len(images), -1) - mean) @ np.linalg.inv(root)
    return white.reshape(images.shape), root


def test_it_is_the_fields_formula() -> None:
    train, test = pictures(), pictures(20, seed=1)
    space = fit_zca(train, show=False)
    white, root = formula(train.numpy(), test.numpy())
    np.testing.assert_allclose(space.transform(test).numpy(), white, rtol=0, atol=2e-6)
    back = white.reshape(20, -1) @ root + train.numpy().reshape(300, -1).mean(axis=0)
    np.testing.assert_allclose(back.reshape(test.shape), test.numpy(), rtol=0, atol=1e-6)
    torch.testing.assert_close(space.to_pixels(space.transform(test)), test, rtol=0, atol=2e-6)


def test_it_whitens() -> None:
    """With eps far below the variances, the covariance becomes the identity."""
    train = 100 * torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    white = fit_zca(train, show=False).transform(train).reshape(300, -1).double()
    torch.testing.assert_close(
        torch.cov(white.T), torch.eye(192, dtype=torch.float64), rtol=0, atol=0.01
    )


def test_the_same_images_take_the_cached_fit(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit_zca(pictures())
    assert "fitting ZCA on 300 images" in capsys.readouterr().err
    (kept,) = cache.iterdir()
    written = kept.stat().st_mtime_ns
    second = fit_zca(pictures())
    assert capsys.readouterr().err == ""
    assert kept.stat().st_mtime_ns == written
    test = pictures(20, seed=1)
    assert torch.equal(first.transform(test), second.transform(test))
    assert torch.equal(first.to_pixels(test), second.to_pixels(test))
    assert first.describe() == second.describe()


def test_other_images_are_fitted_anew(cache: Path) -> None:
    first = fit_zca(pictures(), show=False)
    changed = pictures()
    changed[7, 2, 3, 4] += 1e-3
    second = fit_zca(changed, show=False)
    assert len(list(cache.iterdir())) == 2
    assert first.describe() != second.describe()


def test_a_damaged_cache_is_fitted_again_and_said(cache: Path) -> None:
    first = fit_zca(pictures(), show=False)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:1000], whole[:-1]):
        kept.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"fitting ZCA again: .*damaged"):
            again = fit_zca(pictures(), show=False)
        assert torch.equal(first.zca.transform_matrix, again.zca.transform_matrix)
        assert kept.read_bytes() == whole
    fit_zca(pictures(seed=5), show=False)
    (other,) = set(cache.iterdir()) - {kept}
    kept.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="holds the fit of other images"):
        fit_zca(pictures(), show=False)


def test_an_unwritable_cache_is_said(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="FASTMTT_CACHE"):
        fit_zca(pictures(), show=False)


def test_it_agrees_with_kornia() -> None:
    """kornia sums and decomposes all at once, in float32 and float64; we in parts, in float64."""
    train, test = pictures(), pictures(20, seed=1)
    theirs, ours = new_zca().fit(train), fit_zca(train, show=False)
    white = theirs(test)
    torch.testing.assert_close(ours.transform(test), white, rtol=0, atol=2e-6)
    torch.testing.assert_close(
        ours.to_pixels(white), theirs.inverse_transform(white), rtol=0, atol=2e-6
    )
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.zca.state_dict()[name], tensor, rtol=0, atol=2e-6)


def test_parts_sum_to_the_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_zca(pictures(), show=False)
    (kept,) = cache.iterdir()
    kept.unlink()
    monkeypatch.setattr("fastmtt.data.zca._PART", 37)
    parts = fit_zca(pictures(), show=False)
    assert parts.digest == whole.digest
    torch.testing.assert_close(
        parts.zca.transform_matrix, whole.zca.transform_matrix, rtol=0, atol=1e-6
    )


def test_integers_are_the_floats_they_mean(cache: Path) -> None:
    """One fit and one digest, so that experts fit whichever form the images are kept in."""
    integers = (pictures() * 255).round().to(torch.uint8)
    first = fit_zca(integers / 255, show=False)
    second = fit_zca(integers, 255, show=False)
    assert len(list(cache.iterdir())) == 1 and first.describe() == second.describe()
    assert integers.dtype == torch.uint8


def test_the_images_are_left_as_they_are() -> None:
    train = pictures()
    fit_zca(train, show=False)
    assert torch.equal(train, pictures())


def test_matrices_that_cannot_fit_are_refused_with_both_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastmtt.data.memory.available", lambda: 20_000_000_000)
    images = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    with pytest.raises(
        FastmttError,
        match=r"ZCA over images of 49152 values \(49152 x 49152 matrices\) would take 77\.3 GB of "
        r"memory and 20\.0 GB are available; set zca to false, or choose a lower res",
    ):
        fit_zca(images, 255, show=False)


def test_one_image_cannot_be_whitened() -> None:
    with pytest.raises(FastmttError, match="ZCA wants two training images or more, got 1"):
        fit_zca(pictures(1), show=False)
