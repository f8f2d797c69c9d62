"""The scores command on digits, and what it finds among wrong labels of CIFAR-10."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from data.archive_maker import save, split
from sklearn.metrics import roc_auc_score

from fastmtt import buffer, scores
from fastmtt.data import load
from fastmtt.experts.order import read_order
from fastmtt.experts.store import TrajectoryStore
from fastmtt.files import read_safetensors
from fastmtt.options import ScoresConfig

TINY = (
    "--dataset digits --model ConvNetD1W8 --threads 1 --networks 3 --score_epochs 1 "
    "--train_epochs 2 --batch_train 128"
)
CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10_jpeg.npz"
NAMES = {"grand": "GraNd", "el2n": "EL2N", "forgetting": "Forgetting", "uncertainty": "Uncertainty"}


@pytest.fixture(scope="module")
def digits():
    return load("digits", "", progress=False)


def failing(capsys, flags: str) -> str:
    """The sentence the command ends with."""
    with pytest.raises(SystemExit) as stop:
        scores.main(flags.split())
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("score", NAMES)
def test_the_order_is_each_class_by_its_mean_score(tmp_path, capsys, digits, score):
    scores.main(f"{TINY} --score {score} --indices_path {tmp_path}".split())
    name = f"digits_{NAMES[score]}"
    order = read_order(name, tmp_path, digits.train_labels, 10)
    tensors, meta = read_safetensors(tmp_path / f"{name}.safetensors", scores.KIND)
    mean = tensors["scores"].double().mean(0)
    assert tensors["scores"].shape == (3, 1347) and len(mean.unique()) > 3
    assert all(bool((mean[row].diff() >= 0).all()) for row in order)
    assert meta["score"] == score and meta["epochs"] == (1 if score in ("grand", "el2n") else 2)
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{NAMES[score]} of 1347 training images of digits")
    last = told[-1].split()
    assert last[0] == "9" and float(last[2]) == pytest.approx(float(mean[order[9]].mean()), 1e-3)
    assert last[3:8] == [str(row) for row in order[9][:5].tolist()]
    assert last[9:] == [str(row) for row in order[9][-5:].tolist()]


def test_the_same_seed_gives_the_same_bits_and_another_others(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        scores.main(f"{TINY} --seed {seed} --indices_path {tmp_path / folder}".split())
    files = [tmp_path / folder / "digits_GraNd.safetensors" for folder in "abc"]
    one, again, other = (file.read_bytes() for file in files)
    assert one == again and one != other
    orders = [torch.load(file.with_suffix(".pt"))[0] for file in files]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_networks_that_are_added_are_those_that_all_at_once_would_be(tmp_path, monkeypatch):
    scores.main(f"{TINY} --indices_path {tmp_path / 'whole'}".split())
    monkeypatch.setattr(scores, "together", lambda *_: 1)
    flags = f"{TINY} --indices_path {tmp_path / 'parts'}"
    scores.main(f"{flags} --networks 1".split())
    scores.main(f"{flags} --resume".split())
    for kind in ("safetensors", "pt"):
        whole, parts = (tmp_path / name / f"digits_GraNd.{kind}" for name in ("whole", "parts"))
        assert whole.read_bytes() == parts.read_bytes()


def test_a_killed_command_keeps_the_networks_that_were_done(tmp_path, monkeypatch):
    usual, begun = scores.network_scores, []

    def killed(config, dataset, members):
        begun.append(list(members))
        if members[0] == 2:
            raise KeyboardInterrupt
        return usual(config, dataset, members)

    monkeypatch.setattr(scores, "together", lambda *_: 1)
    monkeypatch.setattr(scores, "network_scores", killed)
    flags = f"{TINY} --indices_path {tmp_path}"
    with pytest.raises(KeyboardInterrupt):
        scores.main(flags.split())
    assert [file.name for file in tmp_path.iterdir()] == ["digits_GraNd.safetensors"]
    monkeypatch.setattr(scores, "network_scores", usual)
    scores.main(f"{flags} --resume".split())
    assert begun == [[0], [1], [2]]
    tensors, _ = read_safetensors(tmp_path / "digits_GraNd.safetensors", scores.KIND)
    assert len(tensors["scores"]) == 3 and (tmp_path / "digits_GraNd.pt").exists()


def test_nothing_is_overwritten_and_other_makings_are_not_mixed(tmp_path, capsys):
    flags = f"{TINY} --indices_path {tmp_path}"
    scores.main(flags.split())
    bits = (tmp_path / "digits_GraNd.pt").read_bytes()
    said = failing(capsys, flags)
    assert "digits_GraNd.pt is there already" in said and "--resume" in said
    said = failing(capsys, f"{flags} --resume --lr_teacher 0.5 --score_epochs 2")
    assert "lr_teacher 0.01 (now 0.5)" in said and "epochs 1 (now 2)" in said
    assert (tmp_path / "digits_GraNd.pt").read_bytes() == bits
    scores.main(f"{flags} --score el2n".split())  # another score has files of its own
    (tmp_path / "file").touch()
    assert "cannot be written to" in failing(capsys, f"{TINY} --indices_path {tmp_path / 'file'}")


def test_experts_are_trained_by_the_order(tmp_path):
    scores.main(f"{TINY} --networks 1 --indices_path {tmp_path}".split())
    flags = (
        "--dataset digits --model ConvNetD1W8 --threads 1 --num_experts 1 --train_epochs 2 "
        f"--buffer_path {tmp_path}"
    )
    flags += f" --sort_method digits_GraNd --indices_path {tmp_path} --init_ratio 0.5"
    flags += " --add_end_epoch 1 --rm_easy_ratio_first 0 --rm_easy_ratio_second 0"
    buffer.main(flags.split())
    assert TrajectoryStore(tmp_path / "digits" / "ConvNetD1W8").length(0) == 3


def some_cifar(path: Path, each: int) -> Path:
    """An archive of so many training images of each class, and a few test images."""
    arrays = {}
    with np.load(CIFAR10, allow_pickle=False) as archive:
        for part, count in (("train", each), ("test", 2)):
            jpeg, offsets = archive[f"{part}_jpeg"], archive[f"{part}_offsets"]
            labels = archive[f"{part}_labels"]
            rows = np.concatenate([np.flatnonzero(labels == k)[:count] for k in range(10)])
            files = [jpeg[offsets[row] : offsets[row + 1]].tobytes() for row in rows]
            arrays |= split(part, files, labels[rows])
        return save(path, {**arrays, "classes": archive["classes"]})


@pytest.mark.slow
@pytest.mark.parametrize("score", ["grand", "el2n"])
def test_images_with_wrong_labels_are_hard(tmp_path, monkeypatch, score):
    if not CIFAR10.exists():
        pytest.skip(f"{CIFAR10} is not there")
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path))
    dataset = load("CIFAR10", some_cifar(tmp_path / "some.npz", 500), progress=False)
    draws = torch.Generator().manual_seed(0)
    wrong = torch.zeros(5000, dtype=torch.bool)
    wrong[torch.randperm(5000, generator=draws)[:500]] = True
    others = (dataset.train_labels + torch.randint(1, 10, (5000,), generator=draws)) % 10
    labels = torch.where(wrong, others, dataset.train_labels)
    config = ScoresConfig(score=score, model="ConvNetW32", networks=2)
    noisy = dataclasses.replace(dataset, train_labels=labels)
    found = scores.network_scores(config, noisy, range(2)).mean(0)
    area = roc_auc_score(wrong, found)
    print(f"\n{score}: the area under the curve is {area:.3f}")
    assert area >= 0.75


def test_networks_that_diverge_order_nothing(tmp_path, capsys):
    said = failing(capsys, f"{TINY} --lr_teacher 1e9 --indices_path {tmp_path}/indices")
    assert "of the networks 0 to 2 one diverged: its weights are not finite; lower lr" in said
    assert list((tmp_path / "indices").iterdir()) == []


def test_a_measure_without_its_score_is_refused(tmp_path, capsys):
    said = failing(capsys, f"{TINY} --uncertainty margin --indices_path {tmp_path}")
    assert "uncertainty is margin, but score is grand" in said
