"""`python -m fastmtt.evaluate` on a run's set and on published files, and going on when killed."""

import json
import time
from pathlib import Path

import pytest
import torch
from processes import apart

from fastmtt import evaluate, evaluation
from fastmtt.config import to_yaml
from fastmtt.data import load
from fastmtt.options import DistillConfig
from fastmtt.protocol import Protocol
from fastmtt.synthetic import Synthetic

NETWORK = "--model ConvNetD1W8 --threads 1 --dsa_strategy crop"
SHORT = "--num_eval 2 --epoch_eval_train 5"
HOW = ("file", "evaluated", "seconds")
HARD = torch.arange(10).repeat_interleave(2)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "data", progress=False)


@pytest.fixture(scope="module")
def images(digits):
    rows = [(digits.train_labels == label).nonzero()[:2, 0] for label in range(10)]
    return digits.train_images[torch.cat(rows)]


def write_config(folder: Path, held_out: int = 0) -> None:
    config = DistillConfig(
        dataset="digits",
        model="ConvNetD1W8",
        threads=1,
        dsa_strategy="crop",
        ipc=2,
        held_out=held_out,
    )
    (folder / "config.yaml").write_text(to_yaml(config))


@pytest.fixture
def run(tmp_path, digits, images) -> Path:
    """A run's folder as distill leaves it, as far as evaluate looks into it."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder)
    digits.space.save(folder / "space.safetensors")
    put(folder, images, HARD)
    return folder


def put(folder: Path, images, labels, which: str = "best") -> None:
    Synthetic(images, labels, torch.tensor(0.03)).save(
        folder / f"distilled_{which}.safetensors", {}
    )


@pytest.fixture
def published(tmp_path, images):
    """The same set as files of a published program; gives the flags that name them."""

    def published(labels) -> str:
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        contents = {"images": images, "labels": labels, "lr": torch.tensor(0.03)}
        for name, content in contents.items():
            torch.save(content, folder / f"{name}_best.pt")
        return (
            f"--data_dir {folder}/images_best.pt --label_dir {folder}/labels_best.pt "
            f"--lr_dir {folder}/lr_best.pt --dataset digits {NETWORK}"
        )

    return published


def evaluated(flags: str, folder: Path) -> list[dict]:
    """Run the command; give what it added to `metrics.jsonl`, but for names and times."""
    file = folder / "metrics.jsonl"
    before = len(file.read_text().splitlines()) if file.exists() else 0
    evaluate.main(flags.split())
    records = [json.loads(line) for line in file.read_text().splitlines()[before:]]
    return [{k: v for k, v in r.items() if k not in HOW} for r in records]


def failing(capsys, flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        evaluate.main(flags.split())
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fastmtt: ")
    return last


@pytest.mark.parametrize("soft", [False, True])
def test_published_files_give_the_bits_of_our_own_file(run, published, images, soft, capsys):
    labels = 5 * torch.eye(10)[HARD] + torch.arange(200).view(20, 10) / 200 if soft else HARD
    put(run, images, labels)
    flags = published(labels)
    theirs = evaluated(f"{flags} {SHORT}", run.parent / "published")
    assert "distilled set (images_best.pt)" in capsys.readouterr().out
    assert theirs == evaluated(f"{run} {SHORT}", run)
    assert len(theirs) == 1 and theirs[0]["networks"] == 2
    assert sorted(path.name for path in (run.parent / "published").iterdir()) == [
        "images_best.pt",
        "labels_best.pt",
        "lr_best.pt",
        "metrics.jsonl",
    ]


def test_soft_labels_are_not_hard_ones(run, images):
    hard = evaluated(f"{run} {SHORT}", run)
    put(run, images, torch.zeros(20, 10))
    soft = evaluated(f"{run} {SHORT}", run)
    assert soft[0]["accuracy"] < hard[0]["accuracy"], "equal labels for all teach nothing"


def test_a_learning_rate_that_is_given_wins(run, published):
    folder = run.parent / "published"
    flags = f"{SHORT} --lr 0.005"
    theirs = evaluated(f"{published(HARD)} {flags}", folder)
    assert theirs == evaluated(f"{run} {flags}", run)
    assert theirs[0]["lr"] == pytest.approx(0.005)
    assert theirs[0]["accuracy"] != evaluated(f"{run} {SHORT}", run)[0]["accuracy"]


def test_which_set_of_a_run_is_evaluated(run, images, capsys):
    put(run, images, HARD, "last")
    evaluate.main([str(run), "--which", "last", *SHORT.split()])
    assert "distilled set (last)" in capsys.readouterr().out
    said = failing(capsys, f"{run} --which held_out")
    assert "distilled_held_out.safetensors" in said and "distilled_last.safetensors" in said


@pytest.mark.parametrize("name", ["last", "ema_best"])
def test_the_sets_own_picture_is_named(run, images, name, capsys):
    for picture in ("images_best", "images_last", "ema_images_best"):
        (run / f"{picture}.png").touch()
    put(run, images, HARD, name)
    evaluate.main([str(run / f"distilled_{name}.safetensors"), *SHORT.split()])
    own = {"last": "images_last.png", "ema_best": "ema_images_best.png"}[name]
    assert f"what was distilled: {run / own}\n" in capsys.readouterr().out


def test_the_runs_held_out_images_are_scored_too(run, images, capsys):
    (without,) = evaluated(f"{run} {SHORT}", run)
    assert "held out" not in capsys.readouterr().out
    write_config(run, held_out=3)
    (record,) = evaluated(f"{run} {SHORT}", run)
    assert record.pop("held_out_accuracy") > 10 and record.pop("held_out_accuracy_std") >= 0
    assert record == without
    assert "held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("{run} --lr_dir {run}/lr_best.pt", "goes with data_dir"),
        ("{run} --data_dir {run}/images_best.pt", "got both"),
        ("{run}/config.yaml", "images go by --data_dir"),
        ("{run}/gone", "config.yaml and distilled_best.safetensors in it"),
        ("--data_dir {run}/images_best.pt --lr 0.1", "cannot be read (there is no such file)"),
        ("{run} --lr 0", "lr"),
    ],
)
def test_mistakes_end_in_one_sentence(run, capsys, flags, words):
    assert words in failing(capsys, flags.format(run=run))


def test_published_files_must_fit_the_data_set(published, tmp_path, capsys):
    flags = published(HARD)
    torch.save(HARD + 1, tmp_path / "published" / "labels_best.pt")
    assert "labels up to 10" in failing(capsys, flags)
    torch.save(torch.zeros(20, 7), tmp_path / "published" / "labels_best.pt")
    assert "logits of 7 classes" in failing(capsys, flags)
    torch.save(torch.zeros(20, 1, 8, 9), tmp_path / "published" / "images_best.pt")
    assert "images [1, 8, 9]" in failing(capsys, flags)


STEPS = 150  # on real images
COMPARE = "--num_eval 1 --epoch_eval_train 20 --compare"


@pytest.fixture(autouse=True)
def fewer_steps_on_real_images(monkeypatch):
    monkeypatch.setattr(evaluate, "REAL_STEPS", STEPS)


def left_over(folder: Path) -> list[Path]:
    return list(folder.glob("evaluation_*"))


def evaluate_shortly(flags: list[str]) -> None:
    evaluate.REAL_STEPS = STEPS
    evaluate.main(flags)


def kill_in(folder: Path, flags: str) -> Path:
    """Start an evaluation and kill it after the first networks are done; give what it left."""
    process = apart.Process(target=evaluate_shortly, args=(flags.split(),))
    process.start()
    try:
        end = time.monotonic() + 120
        while not left_over(folder):
            assert process.is_alive() and time.monotonic() < end, "nothing was kept"
            time.sleep(0.002)
    finally:
        process.kill()
        process.join()
    (file,) = left_over(folder)
    return file


class Stopped(Exception):
    pass


def stopped(*arguments):
    raise Stopped


@pytest.fixture
def ended(run, monkeypatch):
    """What a comparison that ended after the distilled set left in the run's folder."""
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(evaluation, "evaluate_random", stopped)
        evaluate.main([str(run), *COMPARE.split()])
    (file,) = left_over(run)
    return file


@pytest.fixture
def trained(monkeypatch):
    """The number of trainings from here on."""
    seen = []
    real = evaluation.train

    def train(*arguments, **options):
        seen.append(options["members"])
        return real(*arguments, **options)

    monkeypatch.setattr(evaluation, "train", train)
    return seen


def test_a_killed_evaluation_goes_on_to_the_same_numbers(run, capsys):
    names = sorted(path.name for path in run.iterdir())
    whole = evaluated(f"{run} {COMPARE}", run)
    (run / "metrics.jsonl").unlink()
    file = kill_in(run, f"{run} {COMPARE}")
    done = len(json.loads(file.read_text())["scores"])
    assert 1 <= done < 4, "a distilled set, random images at two rates, all images"
    capsys.readouterr()
    assert evaluated(f"{run} {COMPARE} --resume", run) == whole
    assert f"{done} networks are done already" in capsys.readouterr().err
    assert sorted(path.name for path in run.iterdir()) == sorted([*names, "metrics.jsonl"])


def test_networks_that_are_done_are_not_trained_again(run, ended, trained, digits, capsys):
    evaluate.main([str(run), *COMPARE.split(), "--resume"])
    assert len(trained) == 3, "random images at two rates, all images"
    assert not left_over(run)


def test_groups_of_networks_are_kept_one_by_one(digits, images, trained):
    set_ = Synthetic(images.repeat(10, 1, 1, 1), HARD.repeat(10), torch.tensor(0.03))
    protocol = Protocol("ConvNetD1W8", 10, 1, 200, None, 0)
    kept: dict[str, evaluation.Scores] = {}
    whole = evaluation.evaluate_distilled(digits, set_, protocol, kept=kept)
    assert trained == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] and len(kept) == 2
    kept.pop(list(kept)[1])
    again = evaluation.evaluate_distilled(digits, set_, protocol, kept=kept)
    assert trained[2:] == [[5, 6, 7, 8, 9]] and torch.equal(again.test, whole.test)


def test_without_resume_it_starts_anew_and_says_so(run, ended, trained, capsys):
    evaluate.main([str(run), *COMPARE.split()])
    assert len(trained) == 4 and not left_over(run)
    assert "left by a killed evaluation, removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "other",
    [
        "--seed 1",
        "--lr 0.01",
        "--dsa_strategy flip",
        "--dsa false",
        "--which last",
        "--batch_train 7",
        "--num_eval 2",
        "--epoch_eval_train 2",
    ],
)
def test_what_another_evaluation_left_is_not_taken_up(
    run, images, ended, other, capsys, monkeypatch
):
    put(run, images, HARD.flip(0), "last")
    monkeypatch.setattr(evaluation, "evaluate_random", stopped)
    with pytest.raises(Stopped):
        evaluate.main([str(run), *COMPARE.split(), "--resume", *other.split()])
    assert "it starts anew" in capsys.readouterr().err
    assert len(left_over(run)) == 2


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "x"}', '{"scores": 3}', "\0\1"]
    + [f'{{"format": "fastmtt evaluation 3", "scores": {x}}}' for x in ("3", '{"a": [1]}')],
)
def test_a_damaged_left_over_is_refused(run, ended, capsys, content):
    ended.write_text(content)
    said = failing(capsys, f"{run} {COMPARE} --resume")
    assert ended.name in said and "remove it" in said


def test_a_folder_that_cannot_be_written_to_is_said_before_training(run, capsys, monkeypatch):
    def denied(**options):
        raise PermissionError(13, "Permission denied", str(run))

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    assert "cannot be written to" in failing(capsys, f"{run} {SHORT}")
