"""The published pools, and several networks trained on one set by the command."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastmtt import FastmttError, evaluate, evaluation
from fastmtt.config import parse, to_yaml
from fastmtt.data import load
from fastmtt.options import DistillConfig
from fastmtt.pools import POOLS, pool
from fastmtt.student.zoo import known_names
from fastmtt.synthetic import Synthetic

LABELS = torch.arange(10)
SHORT = "--num_eval 2 --epoch_eval_train 2"
THREE = "AlexNet,ConvNetD2W8BN,ConvNetD1W8"


def test_pools_are_the_published_ones():
    assert pool(None, "ConvNetD4BN", None) == ["ConvNetD4BN"]
    assert pool("S", "ConvNetD4BN", None) == ["ConvNetD4"]
    assert pool("S", "ResNet18BN_AP", None) == ["ResNet18"]
    assert pool("C", "ConvNetD4", None) == ["ConvNetD4", "ConvNet"]
    assert pool("C", "ConvNet", None) == ["ConvNet"]
    assert pool("W", "VGG11", None) == ["ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"]
    assert pool("M", "x", None) == ["ConvNet", "AlexNet", "VGG11", "ResNet18_AP", "ResNet18"]
    assert pool("other", "x", "MLP, timm:resnet18") == ["MLP", "timm:resnet18"]
    assert all(set(names) <= set(known_names()) for names in POOLS.values())
    for names in ("MLP,", "MLP,MLP", ""):
        with pytest.raises(FastmttError, match="networks joined by commas, each once"):
            pool("other", "x", names)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--eval_mode other", "eval_mode is other and model_eval null"),
        ("--model_eval MLP", "eval_mode is null and model_eval MLP"),
        ("--eval_mode N --compare", "compare trains one network on several sets, and eval_mode N"),
    ],
)
def test_keys_at_odds(flags, words):
    with pytest.raises(FastmttError, match=words):
        parse("evaluate", ["run", *flags.split()])


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


@pytest.fixture
def run(tmp_path, digits) -> Path:
    """A run's folder, as far as evaluate looks into it."""
    config = DistillConfig(dataset="digits", model="ConvNetD1W8", threads=1, dsa_strategy="crop")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    digits.space.save(tmp_path / "space.safetensors")
    rows = torch.stack([(digits.train_labels == label).nonzero()[0, 0] for label in LABELS])
    distilled = Synthetic(digits.train_images[rows], LABELS, torch.tensor(0.03))
    distilled.save(tmp_path / "distilled_best.safetensors", {})
    return tmp_path


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records(run)]


def test_several_networks_in_one_table_and_one_picture(run, capsys):
    evaluate.main([str(run), "--eval_mode", "other", "--model_eval", THREE, *SHORT.split()])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "distilled set (best), 10 images, lr 0.03, 2 of each network, on 450 test images of digits"
    )
    assert lines[1].split() == ["network", "accuracy", "seconds"]
    found = records(run)
    assert [line.split()[0] for line in lines[2:5]] == THREE.split(",")
    for line, record in zip(lines[2:5], found, strict=True):
        mean, std, seconds = (record[key] for key in ("accuracy", "accuracy_std", "seconds"))
        assert line.split() == [
            *(record["model"], f"{mean:.2f}", "±", f"{std:.2f}", "%", f"{seconds:.1f}")
        ]
        assert record["lr"] == pytest.approx(0.03) and record["networks"] == 2 and seconds > 0
    assert [record["model"] for record in found] == THREE.split(",")
    picture = run / "distilled_best_eval_other.png"
    assert lines[5] == f"as a picture: {picture}"
    with Image.open(picture) as image:
        assert image.width == 900 and len(image.convert("RGB").getcolors(10**6)) > 10


def test_a_network_of_a_pool_does_what_it_does_alone(run):
    evaluate.main([str(run), "--eval_mode", "other", "--model_eval", THREE, *SHORT.split()])
    for model in THREE.split(","):
        evaluate.main([str(run), "--model", model, *SHORT.split()])
    found = timeless(run)
    assert found[:3] == found[3:]


def test_norms(run, capsys):
    short = ["--num_eval", "1", "--epoch_eval_train", "1"]
    evaluate.main([str(run), "--eval_mode", "N", *short])
    assert [record["model"] for record in records(run)] == list(POOLS["N"])


def test_a_network_too_deep_for_the_images_is_said_before_any_is_trained(run, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(run), "--eval_mode", "D", *SHORT.split()])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "8x8 images allow at most depth 3" in said
    assert not (run / "metrics.jsonl").exists() and not list(run.glob("evaluation_*"))


class Stopped(Exception):
    pass


def test_a_pool_that_was_stopped_goes_on_to_the_same_numbers(run, monkeypatch, capsys):
    command = [str(run), "--eval_mode", "other", "--model_eval", THREE, *SHORT.split()]
    evaluate.main(command)
    whole = timeless(run)
    (run / "metrics.jsonl").unlink()
    train, trained = evaluation.train, []

    def twice_only(network, *given, **options):
        if len(trained) == 3:
            raise Stopped
        trained.append(options["members"])
        return train(network, *given, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(evaluation, "train", twice_only)
        evaluate.main(command)
    assert trained == [[0], [1], [0]], "both AlexNets and one network with batch norm"
    (left,) = run.glob("evaluation_*")
    seconds = [row[2] for row in json.loads(left.read_text())["scores"].values()]
    trained.clear()
    monkeypatch.setattr(
        evaluation,
        "train",
        lambda *given, **options: trained.append(options["members"]) or train(*given, **options),
    )
    evaluate.main([*command, "--resume"])
    assert trained == [[1], [0, 1]] and timeless(run) == whole
    assert records(run)[0]["seconds"] == sum(seconds[:2]), "what the killed one took"
