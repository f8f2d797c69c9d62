"""What a run keeps of its evaluations, and whether the files are what their names say."""

import json

import pytest
import torch

from fastmtt.data import Normalised
from fastmtt.evaluation import Scores
from fastmtt.run import RunFolder
from fastmtt.selection import Selection
from fastmtt.synthetic import Synthetic, load_synthetic

SPACE = Normalised([0.5], [0.25])


def made(value):
    """A set that can be told by its pixels."""
    images = torch.full((2, 1, 4, 4), float(value))
    return Synthetic(images, torch.tensor([0, 1]), torch.tensor(0.1 + value))


def scores(test, held_out=None):
    test, held_out = (
        None if x is None else torch.tensor(x, dtype=torch.float64) for x in (test, held_out)
    )
    return Scores(test, held_out)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def kept(run, name):
    """Which value the set of a file was made of, before which iteration and by what it was kept."""
    found, meta = load_synthetic(run.path / f"distilled_{name}.safetensors")
    return float(found.images[0, 0, 0, 0]), meta["iteration"], meta["chosen_by"]


# Before iterations 0, 10, 20, 30: test accuracies and held-out ones; on test images the second is
# the best, on held-out ones the third, ties stay with the earlier.
COURSE = [
    (0, [0.25, 0.75], [0.10, 0.20]),
    (10, [0.75, 0.75], [0.40, 0.50]),
    (20, [0.50, 0.70], [0.50, 0.60]),
    (30, [0.75, 0.75], [0.60, 0.50]),
]


def went(run, selection, held_out=True):
    return [
        selection.take(run, iteration, made(iteration), scores(test, held if held_out else None))
        for iteration, test, held in COURSE
    ]


@pytest.mark.parametrize("line", ["", "ema"])
def test_each_file_holds_what_it_is_named_for(run, line):
    prefix = f"{line}_" if line else ""
    selection = Selection(SPACE, {"network": "ConvNet"}, line)
    went(run, selection)
    selection.keep(run, 31, "last", made(31), "last iterate")
    assert kept(run, f"{prefix}best") == (10, 10, "test accuracy")
    assert kept(run, f"{prefix}held_out") == (20, 20, "held-out accuracy")
    assert kept(run, f"{prefix}last") == (31, 31, "last iterate")
    for name, value in (("images", 10.0), ("lr", 10.1)):
        tensor = torch.load(run.path / f"{prefix}{name}_best.pt", weights_only=True)
        assert float(tensor.flatten()[0]) == pytest.approx(value)
    labels = torch.load(run.path / f"{prefix}labels_best.pt", weights_only=True)
    assert labels.tolist() == [0, 1]
    pictures = {f"{prefix}images_{i:06d}.png" for i in (0, 10, 20, 30)}
    pictures |= {f"{prefix}images_{name}.png" for name in ("best", "held_out", "last")}
    sets = {f"distilled_{prefix}{name}.safetensors" for name in ("best", "held_out", "last")}
    single = {f"{prefix}{name}_best.pt" for name in ("images", "labels", "lr")}
    assert {path.name for path in run.path.iterdir()} == pictures | sets | single


def test_images_and_their_average_do_not_meet(run):
    images, average = Selection(SPACE, {}), Selection(SPACE, {}, "ema")
    images.take(run, 0, made(1), scores([0.5]))
    average.take(run, 0, made(2), scores([0.6]))
    assert kept(run, "best")[0] == 1 and kept(run, "ema_best")[0] == 2
    average.take(run, 10, made(3), scores([0.7]))
    assert kept(run, "best")[0] == 1 and kept(run, "ema_best")[0] == 3
    assert images.best.iteration == 0 and average.best.iteration == 10


def test_without_held_out_images_none_are_spoken_of(run):
    selection = Selection(SPACE, {})
    told = went(run, selection, held_out=False)
    assert told[1] == "75.00 ± 0.00 %, best 75.00 %"
    assert not list(run.path.glob("*held_out*"))
    summary = selection.summary()
    assert summary["accuracy_held_out_choice"] is None
    assert summary["iteration_held_out_choice"] is None
    assert set(selection.figures(scores([0.5]))) == {"accuracy", "accuracy_std"}


def test_what_is_told_and_summed_up(run):
    selection = Selection(SPACE, {}, "ema")
    told = went(run, selection)
    assert told[2] == "60.00 ± 10.00 %, best 75.00 %; on held-out images 55.00 ± 5.00 %"
    assert selection.summary() == {
        "accuracy_ema_last": pytest.approx(75.0),
        "accuracy_ema_best": pytest.approx(75.0),
        "iteration_ema_best": 10,
        "accuracy_ema_held_out_choice": pytest.approx(60.0),
        "iteration_ema_held_out_choice": 20,
    }
    assert selection.figures(scores([0.2, 0.4], [0.1, 0.1])) == {
        "ema_accuracy": pytest.approx(30.0),
        "ema_accuracy_std": pytest.approx(10.0),
        "ema_held_out_accuracy": pytest.approx(10.0),
        "ema_held_out_accuracy_std": pytest.approx(0.0),
    }


def test_it_goes_on_from_its_state_as_json(run):
    whole, before, after = (Selection(SPACE, {}) for _ in range(3))
    went(run, whole)
    for iteration, test, held_out in COURSE[:2]:
        before.take(run, iteration, made(iteration), scores(test, held_out))
    after.restore(json.loads(json.dumps(before.state())))
    for iteration, test, held_out in COURSE[2:]:
        after.take(run, iteration, made(iteration), scores(test, held_out))
    assert after.state() == whole.state()
