"""Training spaces: there and back, and the same bits from disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmtt.data.spaces import KIND, Normalised, Space, Whitened, load_space, new_zca
from fastmtt.errors import FastmttError
from fastmtt.files import write_safetensors


def pixels(count: int = 40) -> torch.Tensor:
    return torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(3))


def normalised() -> Normalised:
    return Normalised((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def whitened() -> Whitened:
    return Whitened(new_zca().fit(pixels()), "abc")


def test_normalising_is_the_textbooks() -> None:
    images = normalised().transform(pixels())
    assert images[7, 1, 2, 3].item() == pytest.approx(
        (pixels()[7, 1, 2, 3].item() - 0.4822) / 0.1994, rel=1e-6
    )
    assert images.dtype == torch.float32
    assert normalised().transform(pixels().double()).dtype == torch.float64


@pytest.mark.parametrize("space", [normalised(), whitened()])
def test_pixels_come_back(space: Space) -> None:
    back = space.to_pixels(space.transform(pixels()))
    torch.testing.assert_close(back, pixels(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("space", [normalised(), whitened()])
def test_a_loaded_space_gives_the_same_bits(space: Space, tmp_path: Path) -> None:
    space.save(tmp_path / "space.safetensors")
    loaded = load_space(tmp_path / "space.safetensors")
    images = space.transform(pixels())
    assert type(loaded) is type(space)
    assert torch.equal(loaded.transform(pixels()), images)
    assert torch.equal(loaded.to_pixels(images), space.to_pixels(images))
    assert loaded.describe() == space.describe()


def test_descriptions_tell_spaces_apart() -> None:
    assert normalised().describe() == {
        "kind": "normalised",
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2023, 0.1994, 0.2010],
    }
    assert whitened().describe() == {"kind": "zca", "eps": 0.1, "images": "abc"}
    assert Whitened(new_zca().fit(pixels()), "abd").describe() != whitened().describe()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    with pytest.raises(FastmttError, match=r"space\.safetensors: there is no such file"):
        load_space(path)
    save_file({"mean": torch.zeros(3)}, path)
    with pytest.raises(FastmttError, match=r"space\.safetensors is a safetensors file of another"):
        load_space(path)
    whitened().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(FastmttError, match=r"space\.safetensors is damaged"):
        load_space(path)
    path.write_bytes(whole.replace(b"zca", b"pca"))
    with pytest.raises(FastmttError, match=r"holds no space of ours .*'pca'"):
        load_space(path)
    path.write_bytes(whole.replace(b"[60,60]", b"[36,100]", 1).replace(b" ", b"", 1))
    with pytest.raises(FastmttError, match=r"space\.safetensors"):
        load_space(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"std": [0.5, 0.0, 1.0]},
        {"std": [0.5]},
        {"mean": []},
        {"mean": "abc"},
        {"mean": [1, True, 2]},
    ],
)
def test_constants_that_make_no_space_are_refused(tmp_path: Path, changed: dict) -> None:
    path = tmp_path / "space.safetensors"
    meta = {"kind": "normalised", "mean": [0.5] * 3, "std": [0.25] * 3, **changed}
    write_safetensors(path, KIND, {"mean": torch.zeros(3)}, meta)
    with pytest.raises(FastmttError, match="space.safetensors holds no space of ours"):
        load_space(path)


def test_matrices_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    names = {"mean_vector": 1, "transform_matrix": 4, "transform_inv": 4}
    matrices = {name: torch.full((rows, 4), float("nan")) for name, rows in names.items()}
    meta = {"kind": "zca", "eps": 0.1, "images": "digest"}
    write_safetensors(path, KIND, matrices, meta)
    with pytest.raises(FastmttError, match="matrices that are not finite"):
        load_space(path)
