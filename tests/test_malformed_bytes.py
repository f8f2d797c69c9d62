"""Readers and the configuration against what hypothesis can think of.

Whatever bytes, tensors or keys they get: a value, or a FastmttError in one line that names the
file; never another exception.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from fastmtt.config import COMMANDS, parse, to_yaml
from fastmtt.data import load, load_space
from fastmtt.data.spaces import KIND as SPACE
from fastmtt.data.spaces import Normalised, Whitened, new_zca
from fastmtt.errors import FastmttError
from fastmtt.experts.published import PublishedBuffer, write_published
from fastmtt.experts.store import KIND as EXPERT
from fastmtt.experts.store import TrajectoryStore
from fastmtt.options import DistillConfig
from fastmtt.published_sets import load_published
from fastmtt.reporting.metrics import read_metrics
from fastmtt.reporting.reader import read_run
from fastmtt.synthetic import KIND as SET
from fastmtt.synthetic import Synthetic, load_synthetic

EXPERT_META: dict[str, Any] = {
    "names": ["weight"],
    "shapes": [[2, 3]],
    **dict.fromkeys(("network", "dataset", "space", "recipe", "versions"), "any"),
}
quick = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "nowhere", progress=False)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _experts(folder: Path) -> Path:
    store = TrajectoryStore(folder, EXPERT_META)
    return store.write(0, torch.arange(18.0).view(3, 6))


def _replay(folder: Path) -> Path:
    return write_published(folder, 0, [[[torch.full((2, 3), i)] for i in (1.0, 2.0, 3.0)]] * 2)


def _set(folder: Path) -> Path:
    images = torch.ones(10, 1, 8, 8)
    Synthetic(images, torch.arange(10), torch.tensor(0.1)).save(folder / "set.safetensors", {})
    return folder / "set.safetensors"


def _normalised(folder: Path) -> Path:
    Normalised([0.5], [0.25]).save(folder / "space.safetensors")
    return folder / "space.safetensors"


def _whitened(folder: Path) -> Path:
    zca = new_zca()
    zca.fit(torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
    Whitened(zca, "digest").save(folder / "space.safetensors")
    return folder / "space.safetensors"


def _images(folder: Path) -> Path:
    torch.save(torch.ones(10, 1, 8, 8), folder / "images_best.pt")
    return folder / "images_best.pt"


def _archive(folder: Path) -> Path:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    picture.save(folder / "one.jpg")
    jpeg = (folder / "one.jpg").read_bytes()
    part = (np.frombuffer(jpeg * 10, np.uint8), np.arange(11) * len(jpeg), np.arange(10))
    names = ("jpeg", "offsets", "labels")
    arrays = {
        f"{split}_{n}": a for split in ("train", "test") for n, a in zip(names, part, strict=True)
    }
    np.savez(folder / "cifar.npz", classes=np.array(list("abcdefghij")), **arrays)
    return folder / "cifar.npz"


def _tree(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
        for where in ("train/a", "train/b", "test/a", "test/b"):
            (folder / "tree" / where).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "tree" / where / f"0{suffix}")
        return folder / "tree/train/b" / f"0{suffix}"

    return make


def _config(folder: Path) -> Path:
    (folder / "config.yaml").write_text(to_yaml(DistillConfig(dataset="digits", lr_lr=1e-7)))
    return folder / "config.yaml"


def _metrics(folder: Path) -> Path:
    lines = [{"iteration": i, "loss": 1.0, "lr": 0.1, "seconds": 1.0} for i in range(5)]
    lines.append({"iteration": 5, "accuracy": 50.0, "accuracy_std": 1.0, "networks": 2})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "metrics.jsonl"


def _summary(folder: Path) -> Path:
    _config(folder)
    (folder / "summary.json").write_text('{"seconds": {"data": 1.5}, "peak_memory_mb": 30.0}')
    return folder / "summary.json"


def _read_experts(path: Path, _: Any) -> None:
    store = TrajectoryStore(path.parent, {"shapes": EXPERT_META["shapes"]})
    store.missing(1, 2)
    first, last = store.segment(0, 0, 2)
    assert first.shape == last.shape == (6,) and first.isfinite().all() and last.isfinite().all()


def _read_replay(path: Path, _: Any) -> None:
    buffer = PublishedBuffer(path.parent, {"shapes": EXPERT_META["shapes"]})
    for expert in buffer.indices():
        first, last = buffer.segment(expert, 0, 1)
        assert first.shape == last.shape == (6,) and first.isfinite().all()


def _read_set(path: Path, _: Any) -> None:
    synthetic, _ = load_synthetic(path)
    assert synthetic.images.isfinite().all() and float(synthetic.lr) > 0


def _read_space(path: Path, _: Any) -> None:
    space = load_space(path)
    json.dumps(space.describe(), allow_nan=False)
    if isinstance(space, Normalised):
        pixels = torch.full((1, len(space.mean), 2, 2), 0.5)
        assert space.to_pixels(space.transform(pixels)).shape == pixels.shape


def _read_images(path: Path, digits: Any) -> None:
    synthetic = load_published(path, None, None, 0.1, dataset=digits)
    assert synthetic.images.isfinite().all() and len(synthetic.labels) == len(synthetic.images)


FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Path, Any], object]]] = {
    "experts": (_experts, _read_experts),
    "replay": (_replay, _read_replay),
    "set": (_set, _read_set),
    "normalised": (_normalised, _read_space),
    "whitened": (_whitened, _read_space),
    "images": (_images, _read_images),
    "archive": (_archive, lambda path, _: load("CIFAR10", path, progress=False)),
    "png": (_tree(".png"), lambda path, _: load("folder", path.parents[2], progress=False)),
    "jpeg": (_tree(".jpg"), lambda path, _: load("folder", path.parents[2], progress=False)),
    "config": (_config, lambda path, _: parse("distill", ["--cfg", str(path)])),
    "metrics": (_metrics, lambda path, _: read_metrics(path)),
    "summary": (_summary, lambda path, _: read_run(path.parent)),
}


def value_or_sentence(read: Callable[[], object], named: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except FastmttError as error:
            assert len(str(error).splitlines()) == 1
            assert str(named) in str(error)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut, overwritten, inserted, removed or repeated at a place or two."""
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(0, len(content)))
        new = draw(st.binary(max_size=16))
        length = draw(st.integers(0, 64))
        content = draw(
            st.sampled_from(
                [
                    content[:at],
                    content[:at] + new + content[at:],
                    content[:at] + new + content[at + len(new) :],
                    content[:at] + content[at + length :],
                    content[: at + length] + content[at:],
                ]
            )
        )
    return content


@pytest.mark.parametrize("kind", FILES)
def test_damaged_bytes(folder: Path, digits, kind: str) -> None:
    make, read = FILES[kind]
    path = make(folder)
    whole = path.read_bytes()
    read(path, digits)

    @quick
    @given(damaged(whole))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        value_or_sentence(lambda: read(path, digits), folder)

    check()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.bool]


@st.composite
def tensors(draw: st.DrawFn, names: list[str]) -> dict[str, torch.Tensor]:
    """Tensors of these names, of any type and shape, also NaN and infinite."""
    found = {}
    for name in draw(st.lists(st.sampled_from(names), unique=True)):
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        value = draw(st.sampled_from([0, 1, -1, math.nan, math.inf]))
        dtype = draw(st.sampled_from(DTYPES))
        assume(dtype.is_floating_point or math.isfinite(value))
        found[name] = torch.full(shape, value, dtype=dtype)
    return found


SPACE_META = {
    "kind": st.sampled_from(["normalised", "zca"]) | JSON,
    "mean": st.lists(st.floats(-2, 2), max_size=3) | JSON,
    "std": st.lists(st.floats(-1, 2), max_size=3) | JSON,
    "eps": st.just(0.1) | JSON,
    "images": JSON,
}


@pytest.mark.parametrize(
    ("format_", "names", "meta", "file", "read"),
    [
        (
            EXPERT,
            ["trajectory", "other"],
            {name: st.just(value) | JSON for name, value in EXPERT_META.items()},
            "expert_00000.safetensors",
            _read_experts,
        ),
        (SET, ["images", "labels", "lr"], {"names": JSON}, "set.safetensors", _read_set),
        (
            SPACE,
            ["mean", "std", "mean_vector", "transform_matrix", "transform_inv"],
            SPACE_META,
            "space.safetensors",
            _read_space,
        ),
    ],
    ids=["experts", "set", "space"],
)
def test_other_tensors_and_metadata(
    folder: Path, format_: str, names: list[str], meta: Any, file: str, read: Any
) -> None:
    @settings(quick, max_examples=80)
    @given(tensors(names), st.fixed_dictionaries({}, optional=meta))
    def check(content: dict[str, torch.Tensor], said: dict[str, Any]) -> None:
        header = {"fastmtt": json.dumps({**said, "format": format_})}
        save_file(content, folder / file, metadata=header)
        value_or_sentence(lambda: read(folder / file, None), folder / file)

    check()


KEYS = sorted(field.name for field in dataclasses.fields(DistillConfig))
FLAGS = sorted({f"--{f.name}" for kind in COMMANDS.values() for f in dataclasses.fields(kind)})
VALUES = st.sampled_from(
    [
        *("1", "-1", "0", "1e-05", "1.5", ".nan", ".inf", "-.inf", "true", "'True'", "null", "~"),
        *("[0, 1]", "{a: 1}", "''", '"\\0"', "1:30", "0x10", "010", "2024-01-01", "!!int 3", "*a"),
        *("!!python/name:os.system ''", "&a 3", "digits", "exact", "noise", "cuda:0", "99" * 40),
        *("samples_predicted_correctly", "- 1", "|\n  a\n  b", "9" * 400, "'null'", "größe", "=="),
    ]
)
LINES = st.tuples(
    st.sampled_from([*KEYS, "lr_y", "eval_mode", "ema_decay", "texture", "ipcs", "", "<<", "? a"]),
    VALUES | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)


@settings(quick, max_examples=120)
@given(st.lists(LINES, max_size=4))
def test_any_file_of_keys(folder: Path, lines: list[tuple[str, str]]) -> None:
    path = folder / "c.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in lines), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = parse("distill", ["--cfg", str(path)])
        except FastmttError as error:
            assert len(str(error).splitlines()) == 1
            named = [str(path), *(key for key, _ in lines if key), "max_start_epoch", "max_experts"]
            assert any(name in str(error) for name in named)
            return
    path.write_text(to_yaml(config), encoding="utf-8")
    assert parse("distill", ["--cfg", str(path)]) == config


@settings(quick, max_examples=120)
@given(
    st.sampled_from(sorted(COMMANDS)),
    st.lists(
        st.sampled_from(FLAGS)
        | VALUES
        | st.text(max_size=6).filter(lambda text: not text.startswith(("-h", "--h")))
        | st.sampled_from(["--cfg", "--", "-", "--=", "--zca=", "--lr_lr=1e-05"]),
        max_size=5,
    ),
)
def test_any_command_line(command: Any, argv: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert type(parse(command, argv)) is COMMANDS[command]
        except FastmttError as error:
            assert len(str(error).splitlines()) == 1
