"""IDC on a small tree in ImageNet's layout: distilled and evaluated as its large images are."""

import json
from pathlib import Path

import pytest
from tree_maker import class_tree

from fastmtt import distill, evaluate
from fastmtt.data.imagenet import _SUBSETS
from fastmtt.synthetic import load_synthetic

CONFIG = Path(__file__).parents[2] / "configs" / "idc" / "imagenet10_ipc10.yaml"
FLAGS = (
    f"--cfg {CONFIG} --res 66 --ipc 1 --model ConvNetD2W4 --Iteration 0 "
    "--inner_loop 2 --batch_real 3 --n_data 8 --net_batch 8 --early 1 --lr_img 1 --threads 1 "
    "--skip_first_eva --epoch_eval_train 2 --published null --run_name r"
)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMTT_CACHE", str(tmp_path / "cache"))
    wnids = _SUBSETS["imagenet10"].values()
    class_tree(tmp_path / "data", ["train"], wnids, each=9, size=70)
    return class_tree(tmp_path / "data", ["val"], wnids, each=1, size=80)


@pytest.mark.slow
def test_a_run_and_its_evaluation(tree, tmp_path, capsys):
    distill.main([*FLAGS.split(), "--data_path", str(tree), "--save_path", str(tmp_path)])
    (file,) = tmp_path.rglob("distilled_best.safetensors")
    made, meta = load_synthetic(file)
    assert meta["dataset"] == "ImageNet/imagenet10/66_crop" and made.images.shape == (10, 3, 66, 66)
    assert made.parametrisation.count(1) == 9
    assert -0.1 < made.images.min() < 0.1 < 0.9 < made.images.max() < 1.1, "but for the last step"
    evaluate.main([str(file.parent), "--protocol", "idc", "--num_eval", "1", "--same_compute"])
    last = json.loads((file.parent / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch_eval_train"] == 2000 // 9 and last["best_accuracy"] >= last["accuracy"]
    assert last["accuracy"] > 20, "ten classes that differ in shade"
