"""IDC's evaluation: a straight-line program in float64, groups of networks, the command."""

import dataclasses
import json
from types import SimpleNamespace

import in_memory
import pytest
import straight_line
import torch
from compare import assert_close
from tolerances import FORMULA, META_GRADIENT

from fastmtt import FastmttError, distill, draws, evaluate, evaluation
from fastmtt.config import to_yaml
from fastmtt.data import load
from fastmtt.diffaug import DiffAug
from fastmtt.options import BaseConfig, DistillConfig
from fastmtt.protocol import make_protocol
from fastmtt.staged_evaluation import evaluate_stages
from fastmtt.student import ConvNetStudent
from fastmtt.synthetic import Synthetic
from fastmtt.training import Examples

EPOCHS, BATCH, SEED = 8, 4, 3
TESTED = (2, 4, 6, 8)  # epochs done, four times evenly
RUN = "--protocol idc --threads 1 --num_eval 3 --epoch_eval_train 4 --batch_train 16"


def protocol_of(dataset, model="ConvNetD1W8"):
    config = BaseConfig(model=model, seed=SEED, dsa_strategy="flip_crop_scale")
    return make_protocol(
        "idc", config, dataset, networks=3, epochs=EPOCHS, batch_train=BATCH, lr=0.05, num_val=4
    )


def mixed(rng, x, labels):
    """CutMix as its paper has it: images and probabilities of a batch."""
    y = torch.nn.functional.one_hot(labels, in_memory.CLASSES).to(x)
    if rng.random() >= 0.5:
        return x, y
    side = (1 - rng.beta(1, 1)) ** 0.5
    partner, (height, width) = rng.permutation(len(x)), x.shape[-2:]
    row, half_height = int(rng.integers(height)), int(height * side) // 2
    column, half_width = int(rng.integers(width)), int(width * side) // 2
    top, bottom = max(row - half_height, 0), min(row + half_height, height)
    left, right = max(column - half_width, 0), min(column + half_width, width)
    other = x[partner]
    x = x.clone()
    x[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    share = (bottom - top) * (right - left) / (height * width)
    return x, (1 - share) * y + share * y[partner]


def trained_by_hand(
    network, theta, images, labels, member, what="evaluation", velocity=0.0, lr=0.05
):
    """One network: its weights and momentum at the end, and its weights at every test."""
    augment, at_tests = DiffAug("flip_crop_scale"), []
    for epoch in range(EPOCHS):
        if epoch in (5, 6):  # two thirds of 8 and five sixths
            lr = lr / 5
        shuffle, dsa, cutmix = (
            draws.stream(SEED, f"{what} {draw}", member, epoch)
            for draw in ("shuffle", "dsa", "cutmix")
        )
        for rows in torch.from_numpy(shuffle.permutation(len(images))).split(BATCH):
            drawn = augment.draw(dsa, len(rows), in_memory.SHAPE)
            x, y = mixed(cutmix, augment.apply(images[rows][None], drawn)[0], labels[rows])
            leaf = theta.clone().requires_grad_()
            log_p = straight_line.logits(network, leaf, x).log_softmax(1)
            (g,) = torch.autograd.grad(-(y * log_p).sum() / len(x), leaf)
            velocity = 0.9 * velocity + g + 5e-4 * theta
            theta = theta - lr * velocity
        if epoch + 1 in TESTED:
            at_tests.append(theta)
    return theta, velocity, at_tests


def share_right(network, theta, dataset):
    outputs = straight_line.logits(network, theta, dataset.test_images)
    return float((outputs.argmax(1) == dataset.test_labels).double().mean())


@pytest.fixture
def small():
    dataset = in_memory.make_dataset()
    rows = torch.arange(10)
    return dataset, Examples(dataset.train_images[rows], dataset.train_labels[rows])


@pytest.fixture
def ended(monkeypatch):
    """Fresh networks in float64; the weights that evaluations end with."""
    fresh, scored, found = evaluation._fresh, evaluation._scores, []

    def scores(theta, *given):
        found.extend(theta)
        return scored(theta, *given)

    monkeypatch.setattr(evaluation, "_fresh", lambda *given: fresh(*given).double())
    monkeypatch.setattr(evaluation, "_scores", scores)
    return found


def test_weights_and_both_accuracies_of_a_straight_line_program(small, ended):
    dataset, examples = small
    protocol = protocol_of(dataset)
    found = evaluation.evaluate(dataset, examples, 0.05, protocol)
    network, accuracies = in_memory.network_of(protocol.model), []
    for member in range(3):
        theta = evaluation._fresh(dataset, protocol, "evaluation", [member])[0]
        given = network, theta, examples.images, examples.labels, member
        theta, _, at_tests = trained_by_hand(*given)
        assert_close(ended[member], theta, FORMULA)
        accuracies.append([share_right(network, at, dataset) for at in at_tests])
    assert found.test.tolist() == [line[-1] for line in accuracies]
    assert found.best.tolist() == [max(line) for line in accuracies]
    assert not torch.equal(found.best, found.test), "else the end would be enough"
    assert found.earlier is None


@pytest.mark.parametrize("stages", [2, 6])
def test_stages_of_a_straight_line_program(small, ended, stages):
    """Weights and momentum go on from set to set; from the sixth on at half the rate."""
    dataset, examples = small
    protocol, count = protocol_of(dataset), len(examples.images)
    given = [torch.arange(count)[: 5 + min(number, 5)] for number in range(stages)]
    sets = [
        Synthetic(examples.images[rows], examples.labels[rows], torch.tensor(0.7)) for rows in given
    ]
    found = evaluate_stages(dataset, sets, protocol)
    network = in_memory.network_of(protocol.model)
    best = torch.empty(stages, 3, dtype=torch.float64)
    for member in range(3):
        theta, velocity = evaluation._fresh(dataset, protocol, "evaluation", [member])[0], 0.0
        for number, one in enumerate(sets):
            what = f"evaluation stage {number}" if number else "evaluation"
            lr = 0.025 if number == 5 else 0.05
            more = one.images, one.labels, member, what, velocity, lr
            theta, velocity, at_tests = trained_by_hand(network, theta, *more)
            best[number, member] = max(share_right(network, at, dataset) for at in at_tests)
        assert_close(ended[member], theta, META_GRADIENT)
        assert found.test[member] == share_right(network, theta, dataset)
    assert torch.equal(found.earlier, best[:-1]) and torch.equal(found.best, best[-1])


@pytest.mark.parametrize("model", ["ConvNetD1W8", "ConvNetD1W8BN"])
def test_tests_on_the_way_change_no_bit_nor_do_groups(small, model, monkeypatch):
    dataset, examples = small
    dataset = dataclasses.replace(
        dataset, train_images=dataset.train_images.float(), test_images=dataset.test_images.float()
    )
    examples = dataclasses.replace(examples, images=examples.images.float())
    protocol = protocol_of(dataset, model)
    together = evaluation.evaluate(dataset, examples, 0.05, protocol)
    once = dataclasses.replace(protocol, num_val=1)
    untested = evaluation.evaluate(dataset, examples, 0.05, once)
    assert untested.best is None and torch.equal(untested.test, together.test)
    monkeypatch.setattr(evaluation, "together", lambda *given: 1)
    alone = evaluation.evaluate(dataset, examples, 0.05, protocol)
    assert torch.equal(alone.test, together.test) and torch.equal(alone.best, together.best)
    assert isinstance(evaluation._network(dataset, protocol), ConvNetStudent) != ("BN" in model)


@pytest.fixture
def run(tmp_path):
    """A run's folder as distill leaves it."""
    digits = load("digits", "data", progress=False)
    rows = [(digits.train_labels == label).nonzero()[:2, 0] for label in range(10)]
    config = DistillConfig(dataset="digits", model="ConvNetD1W8", threads=1, ipc=2)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    digits.space.save(tmp_path / "space.safetensors")
    labels = torch.arange(10).repeat_interleave(2)
    images = digits.train_images[torch.cat(rows)]
    set_ = Synthetic(images, labels, torch.tensor(0.5))
    set_.save(tmp_path / "distilled_best.safetensors", {})
    return tmp_path


def record(run, flags=""):
    evaluate.main(f"{run} {RUN} {flags}".split())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in last.items() if name != "seconds"}


def test_a_killed_command_goes_on_to_the_same_bits(run, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "together", lambda *given: 1)
    whole = record(run)
    assert whole["lr"] == 0.01 and whole["best_accuracy"] >= whole["accuracy"]
    assert "best on the way" in capsys.readouterr().out
    real, seen = evaluation.train, []

    def killed(*given, **options):
        seen.append(options["members"])
        if seen == [[0], [1]]:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(evaluation, "train", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        record(run)
    assert record(run, "--resume") == whole
    assert seen == [[0], [1], [1], [2]]


def test_tests_on_the_way_are_idcs_alone(run, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([str(run), "--num_val", "2"])
    assert "num_val is 2, but protocol mtt tests a network once" in capsys.readouterr().err


def test_when_a_network_is_tested_by_hand():
    dataset = SimpleNamespace(name="x", image_shape=(3, 32, 32), classes=("a", "b"))

    def tested(epochs, num_val):
        given = {"networks": 1, "epochs": epochs, "num_val": num_val}
        return make_protocol("idc", BaseConfig(), dataset, **given).validations

    assert tested(1000, 4) == (250, 500, 750) and tested(1000, 1) == ()
    assert make_protocol("mtt", BaseConfig(), dataset, networks=1, epochs=9).validations == ()


def test_a_distillation_by_idcs_protocol_tells_what_the_command_tells(tmp_path):
    flags = (
        f"--dataset digits --data_path {tmp_path} --model ConvNetD1W8 --threads 1 --num_experts 1 "
        f"--expert_epochs 1 --max_start_epoch 1 --syn_steps 1 --Iteration 1 --eval_it 1 "
        f"--buffer_path {tmp_path}/b --save_path {tmp_path}/s --run_name r --num_eval 2 "
        "--epoch_eval_train 3 --protocol idc"
    )
    distill.main(flags.split())
    (file,) = tmp_path.rglob("distilled_last.safetensors")
    lines = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    during = [line["accuracy"] for line in lines if "accuracy" in line]
    how = "--threads 1 --num_eval 2 --epoch_eval_train 3 --which last --protocol"
    told = {}
    for protocol in ("idc", "mtt"):
        evaluate.main([str(file.parent), *how.split(), protocol])
        last = (file.parent / "metrics.jsonl").read_text().splitlines()[-1]
        told[protocol] = json.loads(last)["accuracy"]
    assert during[-1] == told["idc"] != told["mtt"]


def test_a_distillation_by_idcs_protocol_refuses_what_it_is_not():
    with pytest.raises(FastmttError, match="batches of 64"):
        DistillConfig(protocol="idc", batch_train=32)


STAGED = (
    "--dataset digits --method idc --model ConvNetD1W8 --threads 1 --num_intervals 2 --ipc 1 "
    "--factor 1 --Iteration 1 --inner_loop 1 --n_data 64 --earlier_epochs 3 --eval_it 9 "
    "--skip_first_eva --num_eval 2 --epoch_eval_train 4 --protocol idc --run_name r"
)


def test_a_staged_distillation_tells_what_the_command_tells(tmp_path, capsys):
    distill.main([*STAGED.split(), "--save_path", str(tmp_path), "--data_path", str(tmp_path)])
    (file,) = tmp_path.rglob("distilled_stage_2.safetensors")
    lines = [json.loads(line) for line in (file.parent / "metrics.jsonl").read_text().splitlines()]
    during = [line["accuracy"] for line in lines if "accuracy" in line]
    short = "--protocol idc --num_eval 2 --epoch_eval_train 4 --num_val"
    evaluate.main([str(file.parent), *short.split(), "2"])
    last = json.loads((file.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(during) == 2 and during[-1] == last["accuracy"] <= last["best_accuracy"]
    assert last["evaluated"] == "distilled set (2 stages)"
    assert len(last["earlier_best_accuracies"]) == 1
    told = capsys.readouterr().out
    assert f"stage by stage: {last['earlier_best_accuracies'][0]:.2f}, " in told


def test_random_images_at_the_one_rate_there_is_are_told_so(run, capsys):
    evaluate.main([str(run), *RUN.split(), "--compare"])
    lines = {line[:30].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["random real images"].rstrip().endswith("lr 0.01")
    for name in ("distilled set (best)", "random real images", "all real training images"):
        assert lines[name].count("±") == 2, "the last and the best"
