"""What users give that no reader can use: how to make it, the command, what its sentence says.

Paths are relative to the folder of `test_malformed.py`, which holds one of everything.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastmtt.data.spaces import KIND as SPACE
from fastmtt.experts.store import KIND as EXPERT
from fastmtt.files import read_safetensors, write_safetensors
from fastmtt.synthetic import KIND as SET

EXPERTS = Path("experts/digits/ConvNetD1W8")
REPLAY = Path("replay/digits/ConvNetD1W8/replay_buffer_0.pt")
MARK = Path("code-ran")
NAN = float("nan")
Case = tuple[str, Callable[[], object], str, str]  # name, making, command, part of the sentence


class Code:
    """Unpickled freely, it leaves a mark."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARK}",)


def changed(path: str | Path, kind: str, meta: dict[str, Any] | None = None, **tensors: Any) -> Any:
    """Write a file of ours anew with other tensors and other metadata."""

    def change() -> None:
        there, said = read_safetensors(Path(path), kind)
        said.pop("format")
        merged = {**there, **tensors}
        kept = {name: tensor for name, tensor in merged.items() if tensor is not None}
        write_safetensors(Path(path), kind, kept, {**said, **(meta or {})})

    return change


def saved(path: str | Path, content: Any, **how: Any) -> Callable[[], object]:
    return lambda: torch.save(content, path, **how)


def arrays(**changes: Any) -> Callable[[], object]:
    """Write the archive anew with other arrays."""

    def change() -> None:
        with np.load("cifar.npz") as archive:
            kept = {**{name: archive[name] for name in archive.files}, **changes}
        np.savez("cifar.npz", **{name: array for name, array in kept.items() if array is not None})

    return change


def picture(path: str, *, mode: str = "RGB", size: int = 32) -> Callable[[], object]:
    return lambda: Image.new(mode, (size, size)).save(path)


def text(path: str | Path, content: str) -> Callable[[], object]:
    return lambda: Path(path).write_text(content)


def pickled_cifar() -> None:
    folder = Path("cifar-10-batches-py")
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Code()))


def one_array() -> None:
    with open("cifar.npz", "wb") as file:
        np.save(file, np.zeros(3))


def equal_snapshots() -> None:
    experts = torch.load(REPLAY, weights_only=True)
    torch.save([[snapshots[0]] * 3 for snapshots in experts], REPLAY)


def replay(change: Callable[[list[Any]], Any]) -> Callable[[], object]:
    """Write the replay buffer anew, changed."""
    return lambda: torch.save(change(torch.load(REPLAY, weights_only=True)), REPLAY)


def cases(distill: str, published: str, train: str) -> list[Case]:
    """Every case, with the commands' common flags filled in."""
    best, images, labels = (
        "run/distilled_best.safetensors",
        "pt/images_best.pt",
        "pt/labels_best.pt",
    )
    one, lr = f"{published} --lr 0.02", "pt/lr_best.pt"
    two, three = f"{one} --label_dir {labels}", f"{published} --label_dir {labels} --lr_dir {lr}"
    mine, theirs = f"{distill} --buffer_path experts", f"{distill} --buffer_path replay"
    cifar, tree = (
        f"buffer --dataset CIFAR10 --data_path cifar.npz {train}",
        f"buffer --dataset folder --data_path tree {train}",
    )
    expert = EXPERTS / "expert_00000.safetensors"
    ours = [
        ("images NaN", changed(best, SET, images=torch.full((10, 1, 8, 8), NAN))),
        ("images of three axes", changed(best, SET, images=torch.zeros(10, 8, 8))),
        ("images of bytes", changed(best, SET, images=torch.zeros(10, 1, 8, 8, dtype=torch.uint8))),
        ("images of another size", changed(best, SET, images=torch.zeros(10, 3, 32, 32))),
        ("no images", changed(best, SET, images=None)),
        ("labels beyond", changed(best, SET, labels=torch.arange(1, 11))),
        ("labels below", changed(best, SET, labels=torch.arange(-1, 9))),
        ("too few labels", changed(best, SET, labels=torch.arange(9))),
        ("too many logits", changed(best, SET, labels=torch.zeros(10, 11))),
        ("logits NaN", changed(best, SET, labels=torch.full((10, 10), NAN))),
        ("labels of half bytes", changed(best, SET, labels=torch.zeros(10, dtype=torch.int8))),
        ("rate zero", changed(best, SET, lr=torch.tensor(0.0))),
        ("rate below zero", changed(best, SET, lr=torch.tensor(-0.1))),
        ("rate NaN", changed(best, SET, lr=torch.tensor(NAN))),
        ("rate a list", changed(best, SET, lr=torch.tensor([0.1, 0.1]))),
        ("a space as a set", lambda: shutil.copy("run/space.safetensors", best)),
        ("another space", changed("run/space.safetensors", SPACE, {"mean": [0.5]})),
        ("space divides by zero", changed("run/space.safetensors", SPACE, {"std": [0.0]})),
        ("space of two channels", changed("run/space.safetensors", SPACE, {"std": [1.0, 1.0]})),
        ("space of words", changed("run/space.safetensors", SPACE, {"mean": "dark"})),
        ("space of no kind", changed("run/space.safetensors", SPACE, {"kind": "cubic"})),
        (
            "whitening without matrices",
            changed("run/space.safetensors", SPACE, {"kind": "zca", "eps": 0.1}),
        ),
    ]
    published_files = [
        ("code", saved(images, [Code()]), one),
        ("code, old format", saved(images, [Code()], _use_new_zipfile_serialization=False), one),
        ("code, plain pickle", lambda: Path(images).write_bytes(pickle.dumps(Code())), one),
        ("code in labels", saved(labels, {"labels": Code()}), two),
        ("code in the rate", saved(lr, Code()), three),
        ("a dictionary", saved(images, {"images": torch.zeros(10, 1, 8, 8)}), one),
        ("three parts", saved(images, [torch.zeros(10, 1, 8, 8)] * 3), one),
        ("a module", saved(images, torch.nn.Linear(2, 2)), one),
        ("sparse images", saved(images, torch.zeros(10, 1, 8, 8).to_sparse()), one),
        ("images larger than the file", saved(images, torch.zeros(1).expand(10**6, 1, 8, 8)), one),
        ("complex images", saved(images, torch.zeros(10, 1, 8, 8, dtype=torch.complex64)), one),
        ("no images", saved(images, torch.zeros(0, 1, 8, 8)), one),
        ("images NaN", saved(images, torch.full((10, 1, 8, 8), NAN)), one),
        ("images of another size", saved(images, torch.zeros(10, 3, 32, 32)), one),
        ("no multiple of the classes", saved(images, torch.zeros(11, 1, 8, 8)), one),
        ("labels beyond", saved(labels, torch.arange(1, 11)), two),
        ("labels below", saved(labels, torch.arange(-1, 9)), two),
        ("too few labels", saved(labels, torch.arange(9)), two),
        ("labels in columns", saved(labels, torch.zeros(10, 10, dtype=torch.int64)), two),
        ("too many logits", saved(labels, torch.zeros(10, 11)), two),
        ("labels of words", saved(labels, ["cat"] * 10), two),
        ("rate of words", saved(lr, "0.01"), three),
        ("rate true", saved(lr, True), three),
        ("rate zero", saved(lr, 0.0), three),
        ("rate below zero", saved(lr, torch.tensor(-1.0)), three),
        ("rate NaN", saved(lr, torch.tensor(NAN)), three),
        ("rates", saved(lr, torch.tensor([0.1, 0.2])), three),
    ]
    replays = [
        ("code", saved(REPLAY, [[[Code()]]])),
        ("a dictionary", replay(lambda experts: {"experts": experts})),
        ("nothing", replay(lambda experts: [])),
        ("one snapshot", replay(lambda experts: [expert[:1] for expert in experts])),
        ("too short", replay(lambda experts: [expert[:2] for expert in experts])),
        ("one parameter less", replay(lambda e: [[s[:-1] for s in expert] for expert in e])),
        ("doubles", replay(lambda e: [[[t.double() for t in s] for s in x] for x in e])),
        ("NaN at the end", replay(lambda e: [[*x[:-1], [t * NAN for t in x[-1]]] for x in e])),
        ("snapshots equal", equal_snapshots),
        ("too few experts", replay(lambda experts: experts[:1])),
        ("a tensor", replay(lambda experts: torch.zeros(3))),
    ]
    archives = [
        ("code", arrays(classes=np.array([Code()] * 10, dtype=object))),
        ("labels beyond", arrays(train_labels=np.arange(1, 11))),
        ("labels below", arrays(test_labels=np.arange(-1, 9))),
        ("labels of words", arrays(train_labels=np.array(list("abcdefghij")))),
        ("too few labels", arrays(train_labels=np.arange(9))),
        ("eleven classes", arrays(classes=np.array(list("abcdefghijk")))),
        ("one class", arrays(classes=np.array("a"))),
        ("offsets backwards", arrays(train_offsets=np.arange(11)[::-1].copy())),
        ("offsets of doubles", arrays(train_offsets=np.linspace(0, 1, 11))),
        ("offsets huge", arrays(train_offsets=np.arange(11) * 2**60)),
        ("no JPEG", arrays(train_jpeg=np.zeros(20, np.uint8), train_offsets=np.arange(11) * 2)),
        ("no test images", arrays(test_jpeg=None)),
        ("other arrays", lambda: np.savez("cifar.npz", x=np.zeros(3))),
        ("one array", one_array),
    ]
    trees = [
        ("no test", lambda: shutil.rmtree("tree/test"), "tree holds no data set of folders"),
        ("other classes", lambda: Path("tree/test/b").rename("tree/test/c"), "differ"),
        (
            "an empty class",
            lambda: (shutil.rmtree("tree/train/a"), Path("tree/train/a").mkdir()),
            "train/a has no image",
        ),
        (
            "no classes",
            lambda: [shutil.rmtree(p) for p in Path("tree/train").iterdir()],
            "tree/train has no class",
        ),
        ("another size", picture("tree/train/b/2.png", size=9), "2.png"),
        ("sixteen bits", picture("tree/test/b/2.png", mode="I;16"), "2.png"),
        ("text", text("tree/train/a/2.jpg", "a picture of a cat"), "2.jpg"),
        (
            "a file",
            lambda: (shutil.rmtree("tree"), Path("tree").write_text("")),
            "tree holds no data set",
        ),
    ]
    return [
        *(("set: " + name, make, "evaluate run", ".safetensors") for name, make in ours[:16]),
        *(("space: " + name, make, "evaluate run", "run") for name, make in ours[16:]),
        *(("published: " + name, make, how, "pt/") for name, make, how in published_files),
        *(("replay: " + name, make, theirs, "replay") for name, make in replays),
        *(("archive: " + name, make, cifar, "cifar.npz") for name, make in archives),
        *(("tree: " + name, make, tree, said) for name, make, said in trees),
        (
            "expert: of another network",
            changed(expert, EXPERT, {"network": "ConvNetD9"}),
            mine,
            "expert_00000",
        ),
        (
            "expert: of another data set",
            changed(expert, EXPERT, {"dataset": "MNIST"}),
            mine,
            "expert_00000",
        ),
        (
            "expert: one snapshot",
            changed(expert, EXPERT, trajectory=torch.zeros(1, 3)),
            mine,
            "expert_00000",
        ),
        (
            "expert: another size",
            changed(expert, EXPERT, trajectory=torch.zeros(3, 3)),
            mine,
            "expert_00000",
        ),
        (
            "expert: doubles",
            changed(expert, EXPERT, trajectory=torch.zeros(3, 3).double()),
            mine,
            "expert_00000",
        ),
        (
            "expert: no recipe",
            changed(expert, EXPERT, {"recipe": None}),
            f"{mine} --num_experts 3",
            "expert_00000",
        ),
        ("expert: both kinds", lambda: shutil.copy(REPLAY, EXPERTS), mine, "both expert_"),
        (
            "replay: no first file",
            lambda: REPLAY.rename(REPLAY.with_name("replay_buffer_1.pt")),
            theirs,
            "no replay_buffer_0.pt",
        ),
        (
            "cifar: code in place of batches",
            pickled_cifar,
            f"buffer --dataset CIFAR10 --data_path . {train}",
            "no whole copy of CIFAR-10",
        ),
        (
            "config: code",
            text("c.yaml", "ipc: !!python/object/apply:os.system ['touch code-ran']\n"),
            "distill --cfg c.yaml",
            "c.yaml, line 1: ipc is tagged",
        ),
        (
            "config: laughs",
            text("c.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
            "distill --cfg c.yaml",
            "c.yaml",
        ),
        (
            "config: what is not there",
            text("c.yaml", "random_trajectory: true\nipc: 1\n"),
            "distill --cfg c.yaml",
            "TESLA's random trajectories (random_trajectory: true)",
        ),
        (
            "report: sets and space differ",
            changed("run/space.safetensors", SPACE, {"mean": [0.1] * 3, "std": [1.0] * 3}),
            "report run",
            "space.safetensors",
        ),
        (
            "report: metrics of words",
            text("run/metrics.jsonl", "one\ntwo\n"),
            "report run",
            "metrics.jsonl",
        ),
        (
            "report: summary of lists",
            text("run/summary.json", '{"seconds": [1]}'),
            "report run",
            "summary.json",
        ),
        (
            "report: deep JSON",
            text("run/experts.json", "[" * 100_000),
            "report run",
            "experts.json",
        ),
        (
            "report: huge number",
            text("run/environment.json", '{"a": ' + "9" * 5000 + "}"),
            "report run",
            "environment.json",
        ),
    ]
