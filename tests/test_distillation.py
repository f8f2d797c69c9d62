"""A distillation as it goes: what a step learns or leaves out, where it starts, how it goes on."""

import json
import math

import in_memory
import pytest
import straight_line
import torch
from compare import assert_close
from recordable import Recordable
from tolerances import FORMULA, META_GRADIENT

from fastmtt import FastmttError, evaluation, trajectory_objective
from fastmtt.evaluation import Scores
from fastmtt.labels import Labeller
from fastmtt.options import DistillConfig
from fastmtt.student import make_student

MODEL = "ConvNetD1W8"
GATED = (0, 1)


@pytest.fixture(scope="module")
def dataset():
    return in_memory.make_dataset(noise=0.6)


@pytest.fixture(scope="module")
def experts(dataset):
    """Two that learn, and between them one that hardly moves: its loss is far above 1."""
    return in_memory.train_experts(MODEL, dataset, rates=(0.1, 0.001, 0.03))


@pytest.fixture
def begin(tmp_path, dataset, experts):
    """Makes a run of the first expert, or of some, in a folder of its own."""

    def begun(method, *, used=(0,), folder="run", **keys):
        keys = {"lr_img": 20.0, "lr_teacher": 0.05, "lr_lr": 1e-5, "model": MODEL, **keys}
        config = in_memory.configured(method, **keys)
        (tmp_path / folder).mkdir()
        run = in_memory.began(tmp_path / folder, config, dataset, [experts[i] for i in used])
        if config.labels == "soft":
            student = make_student(run.network.double(), in_memory.SHAPE)
            run.begin(Labeller(student, run.store, run.experts))
        return run

    return begun


def learned(run):
    return in_memory.copied(run.state())[0]


# -- a step


def test_tesla_of_one_step_is_exact_and_as_released_moves_images_half_as_far(begin):
    """Item 6 of the parity list: only the images' gradient is halved, not the learning rate's."""
    moved = {}
    for name, keys in {
        "exact": dict(gradient="exact", legacy_scale=False),
        "meant": dict(legacy_scale=False),
        "released": {},
    }.items():
        run = begin("tesla", folder=name, syn_steps=1, **keys)
        before = learned(run)
        run.step()
        moved[name] = {key: learned(run)[key] - before[key] for key in ("images", "lr")}
    for key in ("images", "lr"):
        assert_close(moved["meant"][key], moved["exact"][key], META_GRADIENT, key)
    assert_close(2 * moved["released"]["images"], moved["meant"]["images"], FORMULA)
    assert_close(moved["released"]["lr"], moved["meant"]["lr"], FORMULA)


def test_a_step_above_the_threshold_changes_nothing_and_is_told_of(begin):
    run = begin("datm", used=GATED, seed=1)
    order = [run.choices.segments(it, 1, [0, 1], 0, 1)[0][0] for it in range(4)]
    assert sorted(order[:2]) == [0, 1] and 1 in order
    for expert in order:
        before = learned(run)
        loss = run.step()
        after, left_out = learned(run), run.run.records[-1].get("left_out", False)
        assert left_out == (expert == 1) == (loss > 1)
        assert before.keys() <= after.keys()
        for name in before:
            assert torch.equal(before[name], after[name]) == left_out, name
    assert run.iteration == 4 and run.run.records[-1]["iteration"] == 3
    told = (run.run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("left_out", False) for line in told] == [e == 1 for e in order]


def test_a_loss_that_is_no_number_is_left_out_where_there_is_a_threshold_and_else_the_end(begin):
    gated, other = begin("datm", folder="gated"), begin("mtt", folder="other")
    for run in (gated, other):
        run.set.lr.data.fill_(1e200)
    images = gated.set.images.detach().clone()
    assert not math.isfinite(gated.step())
    assert gated.run.records[0]["left_out"] and torch.equal(gated.set.images.detach(), images)
    with pytest.raises(FastmttError, match="iteration 0 went astray"):
        other.step()


@pytest.mark.parametrize("soft", [False, True])
def test_the_average_is_of_what_was_learned_alone(begin, soft):
    """It starts as the images; a step left out adds nothing to it."""
    keys = dict(threshold=1.0, ema_decay=0.5, seed=1)
    run = begin("datm" if soft else "ftd", used=GATED, **keys)
    shadow = run.set.images.detach().clone()
    assert torch.equal(run.objective.average.shadow, shadow)
    for _ in range(4):
        run.step()
        if not run.run.records[-1].get("left_out"):
            shadow = 0.5 * shadow + 0.5 * run.set.images.detach()
        assert_close(run.objective.average.shadow, shadow, FORMULA)
    assert {record.get("left_out", False) for record in run.run.records} == {False, True}


# -- where it starts


def test_start_epochs_of_cifar10_with_ten_images_a_class():
    """Item 9 of the parity list: DATM's U(0) = 10, U(500) = 15, U(>= 1000) = 20."""
    config = DistillConfig(
        Sequential_Generation=True,
        current_max_start_epoch=10,
        max_start_epoch=20,
        expansion_end_epoch=1000,
    )
    ends = {it: config.start_epochs(it) for it in (0, 99, 100, 500, 999, 1000, 1001, 10000)}
    assert ends == {
        0: (0, 10),
        99: (0, 10),
        100: (0, 11),
        500: (0, 15),
        999: (0, 19),
        1000: (0, 20),
        1001: (0, 20),
        10000: (0, 20),
    }


def test_start_epochs_that_do_not_grow():
    config = DistillConfig(min_start_epoch=40, max_start_epoch=60, expert_epochs=2)
    assert config.start_epochs(0) == config.start_epochs(5000) == (40, 60)


def test_labels_of_real_images_are_the_first_experts_last_logits(begin, dataset, experts):
    run = begin("datm", used=(0, 2), pix_init="real")
    theta = experts[0][-1]
    want = straight_line.logits(in_memory.network_of(MODEL), theta, run.set.images.detach())
    assert_close(run.set.labels, want, FORMULA)
    rows = (dataset.train_images[:, None] == run.set.images.detach()[None]).flatten(2).all(2)
    assert rows.any(0).all(), "the images are real ones"


def test_images_predicted_correctly_can_have_hard_labels(begin):
    run = begin("datm", labels="hard")
    student = make_student(run.network.double(), in_memory.SHAPE)
    run.begin(Labeller(student, run.store, run.experts))
    assert run.set.labels.tolist() == [0, 0, 1, 1, 2, 2]
    outputs = straight_line.logits(
        in_memory.network_of(MODEL), run.store.trajectories[0][-1], run.set.images.detach()
    )
    assert outputs.argmax(1).tolist() == run.set.labels.tolist()
    run.step()
    assert run.set.labels.tolist() == [0, 0, 1, 1, 2, 2]


# -- how it goes on

WAYS = {
    "mtt": dict(method="mtt", rng="published"),
    "ftd": dict(method="ftd", ema_decay=0.7),
    "tesla with teacher's labels": dict(method="tesla", labels="teacher"),
    "datm": dict(method="datm", used=GATED, seed=0),
    "datm, gate first": dict(method="datm", used=GATED, seed=3),
    "datm, published draws": dict(method="datm", used=GATED, rng="published"),
    "pad with an average": dict(
        method="pad", used=GATED, ema_decay=0.9, keep="loss", loss_ratio=0.4, batch_syn=4
    ),
}


@pytest.mark.parametrize("stop", [0, 1, 3])
@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_to_the_bits_of_one_never_stopped(begin, monkeypatch, way, stop):
    """Through the checkpoint's file: images, labels, lr, momenta, average, draws."""
    scores = Scores(torch.tensor([0.5]), None)
    monkeypatch.setattr(evaluation, "evaluate_distilled", lambda *_, **__: scores)
    keys = {"used": (0, 2), "eval_it": 2, **WAYS[way]}
    whole, first, second = (begin(folder=name, **keys) for name in ("whole", "first", "second"))
    for _ in range(6):
        if whole.iteration == 2:
            whole.evaluate()
        whole.step()
    for _ in range(stop):
        if first.iteration == 2:
            first.evaluate()
        first.step()
    first.run.save_checkpoint(first.state())
    second.restore(first.run.load_checkpoint())
    while second.iteration < 6:
        if second.iteration == 2:
            second.evaluate()
        second.step()
    (wanted, values), (tensors, others) = whole.state(), second.state()
    assert tensors.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(tensors[name], wanted[name]), name
    for timed in (values, others):
        timed.pop("seconds")
    assert json.dumps(values) == json.dumps(others)
    # those of `whole` before the stop are those of `first`
    told = [r.run.records for r in (whole, first, second)]
    timeless = [[{**r, "seconds": 0} for r in records] for records in told]
    assert timeless[0] == timeless[1] + timeless[2]


def test_the_gate_was_shut_in_one_of_those_ways_before_and_after_the_stop(begin):
    """Else the test above would not try what it says."""
    shut = {}
    for way in ("datm", "datm, gate first"):
        run = begin(folder=way, **WAYS[way])
        shut[way] = [run.step() > 1 for _ in range(6)]
    assert shut["datm, gate first"][0] and not shut["datm"][0]
    assert all(True in course and False in course for course in shut.values())


def spoilt(tensors, name, change):
    return (
        {**tensors, name: change(tensors[name])}
        if change
        else {other: tensor for other, tensor in tensors.items() if other != name}
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images", lambda t: t[1:]),
        ("labels", lambda t: t[:, 1:]),
        ("labels", lambda t: t[1:]),
        ("lr", lambda t: t.expand(2)),
        ("average", lambda t: t[1:]),
        ("momentum_images", lambda t: t[1:]),
        ("momentum_labels", lambda t: t[:, 1:]),
        ("images", None),
        ("labels", None),
        ("average", None),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(begin, name, change):
    first, second = (begin("datm", folder=f, ema_decay=0.9) for f in ("first", "second"))
    if name.startswith("momentum"):
        first.step()
    tensors, values = first.state()
    with pytest.raises(FastmttError, match="the checkpoint does not fit this run"):
        second.restore((spoilt(tensors, name, change), values))


@pytest.mark.parametrize("method", ["mtt", "ftd", "datm", "tesla"])
def test_the_update_is_recordable(method, begin, monkeypatch):
    monkeypatch.setattr(Recordable, "made", [])
    keys = {"ema_decay": 0.9} if method == "ftd" else {}
    plain = begin(method, folder="plain", **keys)
    monkeypatch.setattr(trajectory_objective, "Captured", Recordable)
    watched = begin(method, folder="watched", **keys)
    for _ in range(4):
        assert plain.step() == watched.step()
    assert all(map(torch.equal, learned(plain).values(), learned(watched).values()))
    assert Recordable.made[-1].calls == 4


@pytest.mark.parametrize("rng", ["counter", "published"])
def test_drawn_ahead_a_run_has_the_same_bits_and_goes_on_from_the_same_state(rng, begin):
    keys = dict(rng=rng, batch_syn=4, used=(0, 2))
    plain, early = (begin("mtt", folder=folder, **keys) for folder in ("plain", "early"))
    early.objective.ahead = True
    for _ in range(3):
        assert plain.step() == early.step()
        (tensors, values), (same, state) = plain.state(), early.state()
        assert all(torch.equal(tensors[name], same[name]) for name in tensors)
        assert values["choices"] == state["choices"]
    again = begin("mtt", folder="again", **keys)
    again.restore(in_memory.copied(early.state()))
    assert again.step() == early.step()
