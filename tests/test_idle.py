"""Keys that were set and have no effect are named; what a method's row brings along is not."""

from pathlib import Path

import pytest
from published_rows import ROWS, as_published, names_of

from fastmtt import buffer, distill
from fastmtt.config import parse
from fastmtt.methods import METHODS
from fastmtt.options import idle_keys

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*/*.yaml"))
NO_WEIGHT = "keep is loss, but loss_ratio is 0: no weight is left out"


@pytest.mark.parametrize(
    ("flags", "sentences"),
    [
        ("--alpha 0.9", ["alpha is 0.9, but rho_max is null: it has no effect"]),
        ("--method ftd --rho_max 0 --adaptive false", ["adaptive is false, but rho_max is 0.0"]),
        ("--lr_y 3", ["lr_y is 3.0, but labels are hard, which are not learned: it has no"]),
        (
            "--method tesla --labels teacher --Momentum_y 0.5",
            ["Momentum_y is 0.5, but labels are teacher, which are not learned: it has no effect"],
        ),
        (
            "--current_max_start_epoch 4 --expansion_end_epoch 9",
            [
                "current_max_start_epoch is 4, but Sequential_Generation is false: it has no effe",
                "expansion_end_epoch is 9, but Sequential_Generation is false: it has no effect",
            ],
        ),
        ("--decode_type multi", ['decode_type is "multi", but factor is 1: it has no effect']),
        (
            "--batch_real 256 --n_data 9",
            [
                "batch_real is 256, but objective is matching: it has no effect",
                "n_data is 9, but objective is matching: it has no effect",
            ],
        ),
        ("--factor 2 --decode_type bound --batch_syn_max 64", []),
        (
            "--method idc --syn_steps 9",
            ["syn_steps is 9, but objective is gradmatch: it has no effect"],
        ),
        (
            "--method idc --mixup_net vanilla --beta 2",
            ["beta is 2.0, but mixup_net is vanilla: it has no effect"],
        ),
        (
            "--method idc --earlier_epochs 9",
            ["earlier_epochs is 9, but num_intervals is 1: it has no effect"],
        ),
        ("--method pad", [NO_WEIGHT]),
        ("--keep depth", ["keep is depth, but depth_ratio is 0: no weight is left out"]),
        ("--method ftd --rho_max null", []),  # the row's alpha is nobody's mistake
        ("--method ftd --alpha 0.9 --labels soft --lr_y 3", []),
        ("--method pad --keep depth --depth_ratio 0.5", []),
        ("--method datm --labels hard --rho_max null", []),
    ],
)
def test_keys_without_effect_are_named(flags: str, sentences: list[str]) -> None:
    found = idle_keys(parse("distill", flags.split()))
    assert len(found) == len(sentences)
    assert all(one.startswith(other) for one, other in zip(found, sentences, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_row_alone_names_nothing(method: str) -> None:
    assert idle_keys(parse("buffer", ["--method", method])) == []
    assert idle_keys(parse("distill", ["--method", method])) == [NO_WEIGHT] * (method == "pad")


def test_our_files_set_nothing_in_vain() -> None:
    for path in CONFIGS:
        config = parse("distill", ["--cfg", str(path)])
        in_vain = config.keep == "loss" and not config.loss_ratio  # as PAD published two of its own
        assert idle_keys(config) == [NO_WEIGHT] * in_vain, path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ROWS)
def test_what_public_files_set_in_vain(tmp_path: Path, method: str) -> None:
    """Of Tiny's last file, expansion_end_epoch: said where the file is read, by its line."""
    path = tmp_path / "p.yaml"
    for row in ROWS[method]:
        path.write_text(as_published(row, method))
        config = parse("distill", ["--cfg", str(path)])
        assert idle_keys(config) == [NO_WEIGHT] * (row.get("loss_ratio") == 0), names_of(row)


@pytest.mark.parametrize("command", [buffer.main, distill.main])
def test_the_commands_say_so(command, capsys, recwarn) -> None:
    with pytest.raises(SystemExit):  # there is no such data set
        command(["--dataset", "none", "--alpha", "0.7"])
    assert "alpha is 0.7, but rho_max is null" in str(recwarn.pop(UserWarning).message)
