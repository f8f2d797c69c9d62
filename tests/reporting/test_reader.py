"""Run folders: what is read of a whole one, of an unfinished one, and what is refused."""

import json
import shutil

import pytest
import torch
from run_maker import MEAN, STD, make_run, pixels, step, write_metrics, zca_space
from safetensors.torch import save_file

from fastmtt.errors import FastmttError
from fastmtt.reporting.reader import read_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_whole_run(run):
    read = read_run(run)
    assert read.finished and read.done == 21 and read.name == "run"
    assert [chosen.keys for chosen in read.sets] == [("best",), ("held_out",), ("last",)]
    assert [iteration for iteration, _ in read.pictures] == [0, 10, 21]
    assert read.class_name(0) == "tabby cat" and read.class_name(7) == "class 7"
    assert read.summary.seconds["experts"] == 3661.0 and read.summary.peak_memory_mb == 1234.5
    assert read.experts["experts"] == 77


def test_whitened_sets_come_back_to_the_pixels_they_were_made_of(run):
    chosen = read_run(run).sets[0]
    torch.testing.assert_close(chosen.pixels, pixels(6), atol=1e-3, rtol=0)
    torch.testing.assert_close(chosen.whitened, zca_space().transform(pixels(6)))
    assert chosen.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_normalised_sets_have_no_other_view(tmp_path):
    chosen = read_run(make_run(tmp_path / "run", zca=False)).sets[2]
    torch.testing.assert_close(chosen.pixels, pixels(6, seed=2))
    assert chosen.whitened is None
    assert MEAN != STD


def test_equal_sets_are_one(run):
    shutil.copy(run / "distilled_best.safetensors", run / "distilled_last.safetensors")
    assert [chosen.keys for chosen in read_run(run).sets] == [("best", "last"), ("held_out",)]


def test_the_averaged_images_are_sets_of_their_own(tmp_path):
    run = make_run(tmp_path / "run", zca=False, ema_decay=0.99)
    shutil.copy(run / "distilled_best.safetensors", run / "distilled_ema_best.safetensors")
    shutil.copy(run / "distilled_ema_held_out.safetensors", run / "distilled_ema_last.safetensors")
    sets = read_run(run).sets
    learned = [("", (key,)) for key in ("best", "held_out", "last")]
    averaged = [("ema_", ("best",)), ("ema_", ("held_out", "last"))]
    assert [(one.line, one.keys) for one in sets] == learned + averaged
    torch.testing.assert_close(sets[4].pixels, pixels(6, seed=4))


def test_configuration_alone_is_a_run(run):
    for path in run.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    read = read_run(run)
    assert not read.finished and read.done == 0
    assert (read.sets, read.pictures, read.environment, read.experts) == ([], [], {}, None)


def test_run_killed_midway(run):
    write_metrics(run, [step(i) for i in range(7)])
    read = read_run(run)
    assert not read.finished and read.done == 7


def test_without_its_space_a_set_is_shown_as_trained(run):
    (run / "space.safetensors").unlink()
    chosen = read_run(run).sets[0]
    assert chosen.pixels is None and chosen.whitened is not None


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "no configuration": lambda run: (run / "config.yaml").unlink(),
    "no YAML": lambda run: (run / "config.yaml").write_text("ipc: [1"),
    "bytes for YAML": lambda run: (run / "config.yaml").write_bytes(b"\x80\x00"),
    "an unknown key": lambda run: (run / "config.yaml").write_text("ipcs: 1"),
    "a wrong value": lambda run: (run / "config.yaml").write_text("ipc: many"),
    "a cut set": lambda run: cut(run / "distilled_best.safetensors"),
    "an empty set": lambda run: (run / "distilled_last.safetensors").write_bytes(b""),
    "a pickle": lambda run: torch.save({}, run / "distilled_last.safetensors"),
    "a foreign set": lambda run: save_file(
        {"images": torch.ones(1)}, run / "distilled_best.safetensors"
    ),
    "a cut space": lambda run: cut(run / "space.safetensors"),
    "another space": lambda run: zca_space(4).save(run / "space.safetensors"),
    "no line of metrics": lambda run: (run / "metrics.jsonl").write_text("nothing\n"),
    "no JSON": lambda run: (run / "environment.json").write_text('{"a": '),
    "no object": lambda run: (run / "experts.json").write_text("[1]"),
    "deep JSON": lambda run: (run / "experts.json").write_text("[" * 100_000),
    "seconds of text": lambda run: (run / "summary.json").write_text(
        json.dumps({"seconds": {"data": "long"}})
    ),
    "seconds of no parts": lambda run: (run / "summary.json").write_text(
        json.dumps({"seconds": [1]})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_in_one_sentence(run, damage):
    damage(run)
    with pytest.raises(FastmttError) as refusal:
        read_run(run)
    message = str(refusal.value)
    assert str(run) in message or "ipc" in message
    assert "\n" not in message
