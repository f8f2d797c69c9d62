"""FTD's and PAD's experts by the commands: what is trained, stored, compared and refused."""

import warnings
from pathlib import Path

import pytest
import torch

from fastmtt import buffer, distill
from fastmtt.config import parse
from fastmtt.device import load_data
from fastmtt.experts.order import write_order
from fastmtt.experts.store import TrajectoryStore
from fastmtt.experts.trainer import description
from fastmtt.training import Recipe

TINY = (
    "--dataset digits --model ConvNetD1W8 --threads 1 --batch_train 64 --dsa_strategy crop "
    "--num_experts 2 "
)
BUFFER = f"{TINY} --train_epochs 4"
CURRICULUM = (
    "--init_ratio 0.5 --add_end_epoch 1 --rm_epoch_first 1 --rm_epoch_second 2 "
    "--rm_easy_ratio_second 0.3"
)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return load_data(parse("buffer", BUFFER.split())).train_labels


@pytest.fixture
def index(tmp_path, labels) -> str:
    """Flags that name an index file of the digits: in each class, the last images are easy."""
    order = [(labels == label).nonzero().flatten().flip(0) for label in range(10)]
    assert len({len(row) for row in order}) > 1  # classes of unequal size
    write_order(tmp_path / "indices" / "last.pt", order)
    return f"--sort_method last --indices_path {tmp_path}/indices"


def run(folder: Path, flags: str) -> TrajectoryStore:
    buffer.main(f"{flags} --buffer_path {folder}".split())
    return TrajectoryStore(folder / "digits" / "ConvNetD1W8")


def failing(capsys, flags: str, command=buffer.main) -> str:
    with pytest.raises(SystemExit) as stop:
        command(flags.split())
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("fastmtt: ") and "Traceback" not in last
    return last


def weights(store: TrajectoryStore, *snapshots: int) -> tuple[torch.Tensor, torch.Tensor]:
    return store.segment(0, *snapshots)


def test_stores_made_before_these_choices_still_fit():
    made = description(Recipe(4, 64, 0.01), "crop", 0, 0)
    assert made == {
        "batch_train": 64,
        "lr_teacher": 0.01,
        "mom": 0.0,
        "l2": 0.0,
        "decay_after": None,
        "dsa_strategy": "none",
        "seed": 0,
    }


def test_a_curriculum_decides_what_is_seen_and_how_many_steps_there_are(tmp_path, index, capsys):
    plain = run(tmp_path / "plain", BUFFER)
    capsys.readouterr()
    pad = run(tmp_path / "pad", f"{BUFFER} {index} {CURRICULUM}")
    # both experts at once, 64 images a step: 672, 1347, 1217 and 948 of 130 to 137 a class
    steps = 11 + 22 + 20 + 15
    assert f" {steps}/{steps} " in capsys.readouterr().err
    (start, end), (same, other) = weights(plain, 0, 1), weights(pad, 0, 1)
    assert torch.equal(start, same) and not torch.equal(end, other)
    recipe = pad.meta(0)["recipe"]
    wanted = {"init_ratio": 0.5, "add_end_epoch": 1, "rm_epoch_first": 1, "rm_epoch_second": 2}
    wanted |= {"rm_easy_ratio_first": 0.1, "rm_easy_ratio_second": 0.3}
    assert wanted.items() <= recipe.items() and len(recipe["order"]) == 16
    assert recipe.keys() - plain.meta(0)["recipe"].keys() == {*wanted, "order"}
    assert str(tmp_path) not in str(recipe)


def test_a_curriculum_beyond_the_training_is_said(tmp_path, index, capsys):
    late = CURRICULUM.replace("rm_epoch_second 2", "rm_epoch_second 9")
    with pytest.warns(UserWarning, match="trained for 4 epochs and never come to .* rm_epoch_sec"):
        run(tmp_path / "late", f"{BUFFER} {index} {late}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "all", f"{BUFFER} {index} {CURRICULUM}")
        run(tmp_path / "ratio", f"{BUFFER} {index} --ratio 0.5")


def test_pads_experts_without_an_order_are_said_where_any_are_trained(tmp_path, index):
    with pytest.warns(UserWarning, match="no sort_method orders the images.*without PAD's curric"):
        run(tmp_path / "none", f"{BUFFER} --method pad")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "all", f"{BUFFER} --method pad {index} {CURRICULUM}")
        run(tmp_path / "datm", f"{BUFFER} --method datm")
        distill.main(
            f"{TINY} --method pad --loss_ratio 0.5 --max_start_epoch 2 --train_epochs 4 "
            "--current_max_start_epoch 1 --expert_epochs 1 --syn_steps 2 --Iteration 0 "
            f"--num_eval 1 --epoch_eval_train 1 --lr_img 1 --pix_init real --save_path {tmp_path} "
            f"--buffer_path {tmp_path}/none".split()
        )


def test_fixed_pruning_is_stored_as_such(tmp_path, index):
    store = run(tmp_path, f"{BUFFER} {index} --ratio 0.5 --remove_strategy easy")
    made = store.meta(0)["recipe"]
    assert (made["ratio"], made["remove_strategy"]) == (0.5, "easy") and "init_ratio" not in made


def test_a_radius_of_zero_is_plain_sgd_to_the_bit(tmp_path):
    plain = run(tmp_path / "plain", BUFFER)
    none = run(tmp_path / "none", f"{BUFFER} --method ftd --rho_max 0")
    assert plain.path(0).read_bytes() == none.path(0).read_bytes()


def test_experts_of_another_recipe_are_not_mixed(tmp_path, index, capsys):
    run(tmp_path, BUFFER)
    flags = f"{BUFFER} --buffer_path {tmp_path} --num_experts 3"
    assert "recipe.rho is 0.01, wanted" not in (said := failing(capsys, f"{flags} --rho_max 0.01"))
    assert "recipe.rho is absent, wanted 0.01" in said
    assert "recipe.order is absent" in failing(capsys, f"{flags} {index} {CURRICULUM}")


def test_the_order_counts_and_not_its_name(tmp_path, index, labels, capsys):
    store = run(tmp_path / "experts", f"{BUFFER} {index} {CURRICULUM}")
    lost, bits = store.path(1), store.path(1).read_bytes()
    lost.unlink()
    moved = (tmp_path / "indices" / "last.pt").rename(tmp_path / "elsewhere.pt")
    run(tmp_path / "experts", f"{BUFFER} --sort_method {moved} {CURRICULUM}")
    assert lost.read_bytes() == bits
    lost.unlink()
    named = f"--sort_method elsewhere.pt --indices_path {tmp_path}"
    run(tmp_path / "experts", f"{BUFFER} {named} {CURRICULUM}")
    assert lost.read_bytes() == bits
    write_order(moved, [(labels == label).nonzero().flatten() for label in range(10)])
    flags = f"{BUFFER} --sort_method {moved} {CURRICULUM} --buffer_path {tmp_path}/experts"
    assert "recipe.order is" in failing(capsys, flags)


def test_curriculum_and_fixed_pruning_at_once_are_refused(tmp_path, index, capsys):
    run(tmp_path / "experts", BUFFER)  # refused though no expert is missing
    flags = f"{BUFFER} {index} --ratio 0.2 --buffer_path {tmp_path}/experts"
    said = failing(capsys, f"{flags} --init_ratio 0.5 --rm_epoch_first 2")
    assert "ratio is 0.2" in said and "leave init_ratio and rm_epoch_first out" in said


def test_an_order_that_is_missing_or_of_other_images_is_refused(tmp_path, index, capsys):
    where = f"--buffer_path {tmp_path}/experts"
    said = failing(capsys, f"{BUFFER} {where} {index} --sort_method GraNd")
    assert "index files in" in said and "last" in said
    said = failing(capsys, f"{BUFFER} {where} {index} --held_out 5")
    assert "does not order these training images" in said
    assert not (tmp_path / "experts").exists()


def test_a_distillation_needs_the_order_only_for_experts_it_trains(tmp_path, index, capsys):
    run(tmp_path / "experts", f"{BUFFER} --method ftd")
    flags = (
        f"{TINY} --max_start_epoch 2 --expert_epochs 1 --syn_steps 2 --Iteration 1 --num_eval 1 "
        f"--epoch_eval_train 1 --lr_img 1 --save_path {tmp_path} --buffer_path {tmp_path}/experts "
        "--sort_method absent --run_name one"
    )
    distill.main(flags.split())
    assert (tmp_path / "digits/1/ConvNetD1W8/one/distilled_last.safetensors").is_file()
    said = failing(capsys, f"{flags} --num_experts 3 --run_name two", distill.main)
    assert "sort_method is 'absent'" in said


def test_a_distillation_trains_the_experts_of_its_method(tmp_path, index):
    flags = (
        f"{TINY} --method ftd --max_start_epoch 2 --expert_epochs 1 --syn_steps 2 --Iteration 1 "
        f"--num_eval 1 --epoch_eval_train 1 --lr_img 1 --save_path {tmp_path} --run_name one "
        f"--buffer_path {tmp_path} {index} --ratio 0.5"
    )
    distill.main(flags.split())
    made = TrajectoryStore(tmp_path / "digits" / "ConvNetD1W8").meta(1)["recipe"]
    assert (made["rho"], made["alpha"], made["ratio"]) == (0.01, 0.3, 0.5)
    assert made["batch_train"] == 256  # whatever the evaluation's is


def test_a_distillation_takes_experts_that_reach_what_it_reads(tmp_path, capsys):
    run(tmp_path, f"{TINY} --num_experts 1 --train_epochs 2")
    flags = (
        f"{TINY} --max_start_epoch 2 --expert_epochs 1 --syn_steps 2 --Iteration 0 --num_eval 1 "
        f"--epoch_eval_train 1 --lr_img 1 --save_path {tmp_path} --buffer_path {tmp_path} "
        "--expert_batch 64 --train_epochs 4"
    )
    labels = "--pix_init samples_predicted_correctly --Label_Model_Timestamp"
    for asked in ("3", "-4"):
        said = failing(capsys, f"{flags} {labels} {asked}", distill.main)
        assert "was trained for 2 epochs, wanted at least 3" in said
    distill.main(f"{flags} --run_name one".split())
    store = TrajectoryStore(tmp_path / "digits" / "ConvNetD1W8")
    assert [store.length(expert) for expert in (0, 1)] == [3, 5]
    capsys.readouterr()
    distill.main(f"{flags} --run_name two".split())
    assert "all 2 experts are there, the first of 2 epochs by" in capsys.readouterr().err


def test_a_distillations_own_experts_are_those_buffer_trains(tmp_path):
    run(tmp_path / "buffer", f"{TINY} --train_epochs 1 --lr_teacher 0.02")
    flags = (
        f"{TINY} --max_start_epoch 1 --expert_epochs 1 --syn_steps 2 --Iteration 0 --num_eval 1 "
        "--epoch_eval_train 1 --lr_img 1 --run_name one --lr_teacher 0.05 --batch_train 7 "
        f"--expert_lr 0.02 --expert_batch 64 --save_path {tmp_path} "
        f"--buffer_path {tmp_path}/distill"
    )
    distill.main(flags.split())
    one, other = (
        TrajectoryStore(tmp_path / folder / "digits/ConvNetD1W8")
        for folder in ("buffer", "distill")
    )
    assert one.path(1).read_bytes() == other.path(1).read_bytes()
