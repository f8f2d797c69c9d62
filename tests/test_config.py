"""Configuration: the field's keys from files and flags, one sentence for every mistake."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastmtt.config import COMMANDS, parse, to_yaml
from fastmtt.errors import FastmttError
from fastmtt.options import (
    BaseConfig,
    BufferConfig,
    DistillConfig,
    EvaluateConfig,
    ScoresConfig,
)

# Most files here name no method, which is said; test_published_config.py asks how.
pytestmark = pytest.mark.filterwarnings("ignore:.*names no method")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(
        "method: mtt\nipc: 10\nlr_lr: 1.0e-05\nlr_img: 1.e+2\nzca: True\nbatch_syn: null\n"
    )
    return path


def refusal(*argv: Any, command: Any = "distill") -> str:
    with pytest.raises(FastmttError) as refused:
        parse(command, [str(part) for part in argv])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_defaults_are_the_fields() -> None:
    config = parse("distill", [])
    assert config == DistillConfig()
    assert (config.Iteration, config.lr_img, config.lr_lr) == (5000, 1000.0, 1e-5)
    assert (config.syn_steps, config.expert_epochs, config.max_start_epoch) == (20, 3, 25)
    assert parse("buffer", []) == BufferConfig()
    assert parse("evaluate", ["runs/a"]) == EvaluateConfig(run="runs/a")
    assert parse("scores", []) == ScoresConfig()


def test_file_values_have_their_types(file: Path) -> None:
    config = parse("distill", ["--cfg", str(file)])
    assert config == DistillConfig(ipc=10, lr_lr=1e-5, lr_img=100.0, zca=True)
    assert type(config.lr_lr) is float and type(config.lr_img) is float


@pytest.mark.parametrize("order", [0, 1, 2])
def test_flags_win_wherever_they_stand(file: Path, order: int) -> None:
    flags, cfg = ["--ipc", "50", "--zca=False"], ["--cfg", str(file)]
    argv = [cfg + flags, flags + cfg, flags[:2] + [f"--cfg={file}"] + flags[2:]][order]
    config = parse("distill", argv)
    assert (config.ipc, config.zca, config.lr_img) == (50, False, 100.0)


def test_of_two_files_the_later_wins(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "d.yaml"
    other.write_text("ipc: 3\n")
    config = parse("distill", ["--cfg", str(file), "--cfg", str(other)])
    assert (config.ipc, config.lr_img) == (3, 100.0)


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--zca", "False"], "zca", False),
        (["--zca", "true"], "zca", True),
        (["--zca"], "zca", True),
        (["--zca", "--ipc", "3"], "zca", True),
        (["--dsa=False"], "dsa", False),
        (["--lr_lr", "1e-05"], "lr_lr", 1e-5),
        (["--lr_lr", "1"], "lr_lr", 1.0),
        (["--max_experts", "null"], "max_experts", None),
        (["--batch_syn", "7"], "batch_syn", 7),
        (["--run_name", "null"], "run_name", None),
        (["--run_name", "2024"], "run_name", "2024"),
        (["--gradient", "tesla"], "gradient", "tesla"),
        (["--gradient", "5"], "gradient", 5),
        (["--threshold", "null"], "threshold", None),
        (["--memory", "1_000_000"], "memory", 1_000_000),
        (["--device", "cuda:1"], "device", "cuda:1"),
    ],
)
def test_overrides_are_yaml(argv: list[str], key: str, value: Any) -> None:
    got = getattr(parse("distill", argv), key)
    assert got == value and type(got) is type(value)


def test_a_repeated_key_takes_the_last_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pad.yaml"
    path.write_text("zca: False\nipc: 2\nzca: True\n")
    with pytest.warns(UserWarning, match=r"pad\.yaml holds zca twice; the last one counts \(True"):
        config = parse("distill", ["--cfg", str(path)])
    assert config.zca is True
    path.write_text("method: mtt\nzca: True\nipc: 2\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse("distill", ["--cfg", str(path)])


@pytest.mark.parametrize("written", ["1e-05", "1E-5", "+1e-5", "10e-6"])
def test_numbers_that_yaml_takes_for_text_become_numbers_and_are_said(
    tmp_path: Path, written: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"ipc: 1\nlr_lr: {written}\n")
    assert isinstance(yaml.safe_load(path.read_text())["lr_lr"], str)
    with pytest.warns(UserWarning, match=r"c\.yaml, line 2: lr_lr is .*, which YAML reads as text"):
        assert parse("distill", ["--cfg", str(path)]).lr_lr == pytest.approx(1e-5, rel=1e-12)


def test_bools_written_as_text_become_bools_and_are_said(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("dsa: 'False'\n")
    with pytest.warns(UserWarning, match="line 1: dsa is the text 'False'; taken as false"):
        assert parse("distill", ["--cfg", str(path)]).dsa is False


@pytest.mark.parametrize("written", ["2024-01-01", "010", "yes", "1.0", "=", "0x10", "größer"])
def test_names_are_kept_as_they_are_written(tmp_path: Path, written: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"run_name: {written}\n", encoding="utf-8")
    assert parse("distill", ["--cfg", str(path)]).run_name == written


@pytest.mark.parametrize(
    "config",
    [
        DistillConfig(ipc=10, lr_lr=1e-7, gradient=5, run_name="größer", memory=10**10),
        DistillConfig(gradient="tesla", lr_img=1e12, seed=2**40, published=46.3, zca=True),
        BufferConfig(zca=True, device="cuda:0", backend="cpu"),
        ScoresConfig(score="uncertainty", networks=3, train_epochs=2, zca=True),
    ],
)
def test_what_is_written_reads_back_equal(tmp_path: Path, config: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    command: Any = type(config).__name__.removesuffix("Config").lower()
    assert parse(command, ["--cfg", str(path)]) == config


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--ipcs", "3"], "flag --ipcs is unknown to fastmtt.distill; the nearest is ipc"),
        (["--iteration=3"], "flag --iteration is unknown to fastmtt.distill; the nearest is Iter"),
        (["--qqqq"], "flag --qqqq is unknown to fastmtt.distill; see python -m fastmtt.distill"),
        (["--mom", "0"], "flag --mom is unknown to fastmtt.distill; it is a key of fastmtt.buffer"),
        (["--ip", "3"], "flag --ip is unknown to fastmtt.distill; the nearest is ipc"),
        (["--ipc", "1.5"], "ipc is 1.5, wanted a whole number"),
        (["--ipc", "ten"], "ipc is ten, wanted a whole number"),
        (["--ipc", "true"], "ipc is true, wanted a whole number"),
        (["--lr_img", "big"], "lr_img is big, wanted a number"),
        (["--lr_img", "nan"], "lr_img is nan, wanted a number"),
        (["--lr_img", "1e400"], "lr_img is inf, wanted a number at least 0"),
        (["--zca", "maybe"], "zca is maybe, wanted true or false"),
        (["--zca", "1"], "zca is 1, wanted true or false"),
        (["--gradient", "exakt"], "gradient is exakt, wanted exact, tesla or a whole number"),
        (["--gradient", "0"], "gradient is 0, wanted a number at least 1"),
        (["--memory", "2.5"], "memory is 2.5, wanted a whole number or null"),
        (
            ["--pix_init", "grey"],
            "pix_init is grey, wanted real, noise or samples_predicted_correct",
        ),
        (["--backend", "gpu"], "backend is gpu, wanted reference, cpu, triton, cuda or null"),
        (["--device", "gpu"], "device is 'gpu', wanted auto, cpu, cuda or cuda:<number>"),
        (["--ipc"], "--ipc wants a value behind it: a whole number"),
        (["--cfg"], "--cfg wants a YAML file behind it"),
        (["cifar.yaml"], "'cifar.yaml' belongs to no flag; write --key value"),
        (["--ipc", "0"], "ipc is 0, wanted a number at least 1"),
        (["--ipc", "-3"], "ipc is -3, wanted a number at least 1"),
        (["--lr_teacher", "0"], "lr_teacher is 0.0, wanted a number above 0"),
        (["--published", "101"], "published is 101.0, wanted a number at least 0 and at most 100"),
        (["--threshold", "0"], "threshold is 0.0, wanted a number above 0"),
        (["--threshold", "nan"], "threshold is nan, wanted a number"),
        (["--lr_y", "-1"], "lr_y is -1.0, wanted a number at least 0"),
        (["--Momentum_y", "1.5"], "Momentum_y is 1.5, wanted a number at least 0 and at most 1"),
        (["--loss_ratio", "1"], "loss_ratio is 1.0, wanted a number at least 0 and below 1"),
        (["--depth_ratio", "1.5"], "depth_ratio is 1.5, wanted a number at least 0 and below 1"),
        (["--ema_decay", "1"], "ema_decay is 1.0, wanted a number at least 0 and below 1"),
        (["--rho_max", "-0.1"], "rho_max is -0.1, wanted a number at least 0"),
        (["--alpha", "-1"], "alpha is -1.0, wanted a number at least 0"),
        (["--ratio", "1"], "ratio is 1.0, wanted a number at least 0 and below 1"),
        (["--init_ratio", "0"], "init_ratio is 0.0, wanted a number above 0 and at most 1"),
        (["--rm_easy_ratio_first", "1"], "rm_easy_ratio_first is 1.0, wanted a number at least 0"),
        (["--rm_easy_ratio_second", "-1"], "rm_easy_ratio_second is -1.0, wanted a number at lea"),
        (["--add_end_epoch", "-1"], "add_end_epoch is -1, wanted a number at least 0"),
        (["--rm_epoch_first", "0.5"], "rm_epoch_first is 0.5, wanted a whole number"),
        (["--expansion_end_epoch", "0"], "expansion_end_epoch is 0, wanted a number at least 1"),
        (["--current_max_start_epoch", "0"], "current_max_start_epoch is 0, wanted a number at le"),
        (["--labels", "given"], "labels is given, wanted hard, soft or teacher"),
        (["--keep", "most"], "keep is most, wanted all, loss or depth"),
        (["--remove_strategy", "both"], "remove_strategy is both, wanted hard or easy"),
        (["--method", "dream"], "method 'dream' is not known; known: mtt, ftd, tesla, datm, pad"),
        (["--threads", "2000"], "threads is 2000, wanted a number at least 1 and at most 1024"),
        (["--seed", "-1"], "seed is -1, wanted a number at least 0"),
        (
            ["--min_start_epoch", "25"],
            "min_start_epoch is 25 and max_start_epoch 25, wanted the first below the second",
        ),
        (
            ["--train_epochs", "26"],
            "segments end at epoch 27 (max_start_epoch - 1 + expert_epochs) and experts at "
            "train_epochs 26, wanted experts at least as long; lower max_start_epoch or raise "
            "train_epochs",
        ),
    ],
)
def test_mistakes_in_flags(argv: list[str], sentence: str) -> None:
    assert refusal(*argv).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "ipc: 3\nsin_steps: 5\n",
            "c.yaml, line 2: key sin_steps is unknown to fastmtt.distill; the",
        ),
        ("l2: 0\n", "c.yaml, line 1: key l2 is unknown to fastmtt.distill; it is a key of fastmtt"),
        ("ipc: [\n", "c.yaml is no YAML file (while parsing"),
        ("- ipc\n", "c.yaml holds no keys and values, wanted lines like 'ipc: 10'"),
        ("ipc\n", "c.yaml holds no keys and values"),
        ("# nothing\n", "c.yaml is empty"),
        ("ipc: ten\n", "ipc is ten, wanted a whole number"),
        ("ipc: {a: 1}\n", "c.yaml, line 1: ipc is a mapping, wanted one plain value"),
        ("zca: true\nipc: [1, 2]\n", "c.yaml, line 2: ipc is a list, wanted a whole number"),
        ("ipc: ''\n", "ipc is '', wanted a whole number"),
        ("ipc:\n", "ipc is null, wanted a whole number"),
        ("dataset: null\n", "dataset is null, wanted text"),
        ("dataset: ''\n", "dataset is '', wanted text that can be printed"),
        ('data_path: "a\\0b"\n', r"data_path is 'a\x00b', wanted text that can be printed"),
        ("lr_img: " + "1" * 400, "lr_img is " + "1" * 80 + "..., wanted a number"),
        ("ipc: 0x" + "f" * 9000, "ipc is a number of 36000 bits, wanted a number at least 1 and"),
        ("ipc: 2147483648\n", "ipc is 2147483648, wanted a number at least 1 and at most 2147483"),
        ("lr_teacher: .nan\n", "lr_teacher is nan, wanted a number above 0"),
        ("held_out: -1\n", "held_out is -1, wanted a number at least 0"),
        ("run_name: ../x\n", "run_name is '../x', wanted a folder's name without its path"),
        ("run_name: ..\n", "run_name is '..', wanted a folder's name without its path"),
        ("ipc: -1\n", "ipc is -1, wanted a number at least 1"),
        ("zca: 3\n", "zca is 3, wanted true or false"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert sentence in refusal("--cfg", path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    assert "nowhere.yaml cannot be read (No such file" in refusal(
        "--cfg", tmp_path / "nowhere.yaml"
    )
    assert "cannot be read (Is a directory" in refusal("--cfg", tmp_path)


def test_experts_long_enough() -> None:
    config = parse("distill", ["--max_start_epoch", "2", "--expert_epochs", "2"])
    assert config.train_epochs is None and config.expert_length == 3
    assert parse("distill", ["--train_epochs", "27"]).expert_length == 27


def test_evaluation_takes_the_rest_from_the_run() -> None:
    made_with = DistillConfig(dataset="digits", model="ConvNetD2", batch_train=64, ipc=10)
    asked = parse("evaluate", ["runs/a", "--model", "VGG11", "--dsa", "false"])
    applied = asked.applied_to(made_with)
    assert applied == dataclasses.replace(made_with, model="VGG11", dsa=False)
    assert type(applied) is DistillConfig


def test_evaluation_wants_its_run() -> None:
    assert "run" in refusal(command="evaluate")
    assert "belongs to no flag" in refusal("a", "b", command="evaluate")


def test_evaluation_knows_all_shared_keys() -> None:
    shared = {field.name for field in dataclasses.fields(BaseConfig)}
    own = {"held_out"}  # a run's held-out images were chosen before it
    assert shared - own == shared & {field.name for field in dataclasses.fields(EvaluateConfig)}


def test_evaluation_keeps_the_runs_held_out_images() -> None:
    applied = parse("evaluate", ["runs/a"]).applied_to(DistillConfig(held_out=7))
    assert applied.held_out == 7
    assert "it is a key of fastmtt." in refusal("runs/a", "--held_out", "3", command="evaluate")


@pytest.mark.parametrize("kind", COMMANDS.values(), ids=COMMANDS)
def test_help_explains_every_key(
    kind: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    command: Any = request.node.callspec.id
    with pytest.raises(SystemExit) as left:
        parse(command, ["--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(kind):
        flag = "RUN" if field.name == "run" else f"--{field.name} "
        behind = text.rpartition(flag)[2]
        assert len(behind.split("(")[0].split()) >= 2, field.name


@pytest.mark.parametrize("kind", COMMANDS.values(), ids=COMMANDS)
def test_help_groups_every_key_once(kind: Any) -> None:
    grouped = [name for names in kind.GROUPS.values() for name in names.split()]
    assert sorted(grouped) == sorted(field.name for field in dataclasses.fields(kind))


def test_help_names_where_keys_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("distill", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--syn_steps SYN_STEPS The student's steps from the start [MTT]. (type: int" in text
    assert "--min_start_epoch MIN_START_EPOCH First epoch a segment may start at [DATM]." in text
    assert "PDD (2310.06982), IDC (2205.14959); without one it is fastmtt's own" in text
    assert "experts: --buffer_path" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_what_print_config_prints_reads_back_silently(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parse(command, ["--print_config"])
    assert left.value.code == 0
    path = tmp_path / "c.yaml"
    path.write_text(capsys.readouterr().out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = ["runs/a"] if command == "evaluate" else []
        assert parse(command, ["--cfg", str(path), *rest]) == parse(command, rest)


def test_what_was_asked_for_before_an_error_is_forgotten():
    with pytest.raises(FastmttError):
        parse("distill", ["--print_config", "stray"])
    assert parse("distill", ["--ipc", "3"]).ipc == 3


def test_print_config_prints_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse("distill", ["--cfg", str(file), "--print_config", "--ipc", "4"])
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    printed["lr_lr"] = float(printed["lr_lr"])
    expected = DistillConfig(ipc=4, lr_lr=1e-5, lr_img=100.0, zca=True)
    assert printed == dataclasses.asdict(expected)


def test_keys_at_odds_are_told_with_where_they_come_from(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text("method: mtt\nrm_easy_ratio_second: 0\n")
    with pytest.raises(FastmttError) as alone:
        parse("distill", ["--cfg", str(file)])
    with pytest.raises(FastmttError) as together:
        parse("distill", ["--cfg", str(file), "--ipc", "2"])
    with pytest.raises(FastmttError) as flags:
        parse("distill", ["--rm_easy_ratio_second", "0"])
    assert str(flags.value).startswith("rm_easy_ratio_second is 0.0, but nothing says")
    assert str(alone.value) == f"{file}: {flags.value}"
    assert str(together.value) == f"{file} and the command line: {flags.value}"
