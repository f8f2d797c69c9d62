"""The configurations in configs/: one for every published experiment, its values by hand."""

import functools
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from published_rows import ROWS, means, names_of

from fastmtt.config import parse
from fastmtt.methods import METHODS
from fastmtt.options import DistillConfig
from fastmtt.protocol import usual_epochs

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(CONFIGS.glob("*/*.yaml"))
# Epochs of the experts that the methods' programs train; of DATM's and PAD's the last one labels.
LENGTHS = {"mtt": 50, "ftd": 50, "tesla": 50, "datm": 100, "pad": 100, "pdd": 50, "idc": 0}
LABELLED = ("datm", "pad")
SETS = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "Tiny": "tiny"}

# file, syn_steps, expert_epochs, max_start_epoch, batch_syn, zca, lr_img, lr_lr, lr_teacher,
# accuracy; FTD: alpha and ema_decay before it.
MTT = """\
cifar10_ipc1    50 2  2   - yes   100 1e-7 .01  46.2
cifar10_ipc10   30 2 20   - yes   100 1e-5 .001 65.4
cifar10_ipc50   30 2 40   - no   1000 1e-5 .001 71.6
cifar100_ipc1   20 3 20   - yes  1000 1e-5 .01  24.3
cifar100_ipc10  20 2 20   - no   1000 1e-5 .01  39.7
cifar100_ipc50  80 2 40 125 yes  1000 1e-5 .01  47.7
tiny_ipc1       10 2 10   - no  10000 1e-4 .01   8.8
tiny_ipc10      20 2 40 200 no  10000 1e-4 .01  23.2
tiny_ipc50      20 2 40 300 no  10000 1e-4 .01  28.0
imagenette_ipc1  20 2 10  - no 100000 1e-6 .01  47.7
imagenette_ipc10 20 2 10 20 no 100000 1e-6 .01  63.0
imagewoof_ipc1   20 2 10  - no 100000 1e-6 .01  28.6
imagewoof_ipc10  20 2 10 20 no 100000 1e-6 .01  35.8
imagefruit_ipc1  20 2 10  - no 100000 1e-6 .01  26.6
imagefruit_ipc10 20 2 10 20 no 100000 1e-6 .01  40.3
imageyellow_ipc1 20 2 10  - no 100000 1e-6 .01  45.2
imageyellow_ipc10 20 2 10 20 no 100000 1e-6 .01 60.0
imagemeow_ipc1   20 2 10  - no 100000 1e-6 .01  30.7
imagemeow_ipc10  20 2 10 20 no 100000 1e-6 .01  40.4
imagesquawk_ipc1  20 2 10 - no 100000 1e-6 .01  39.4
imagesquawk_ipc10 20 2 10 20 no 100000 1e-6 .01 52.3
"""
FTD = """\
cifar10_ipc1    50 2  2    - yes   100 1e-7 .01  .3 .9999 46.8
cifar10_ipc10   30 2 20    - yes   100 1e-5 .001 .3 .9995 66.6
cifar10_ipc50   30 2 40    - yes  1000 1e-5 .01   1 .999  73.8
cifar100_ipc1   40 3 20    - yes  1000 1e-5 .01   1 .9995 25.2
cifar100_ipc10  20 2 40    - yes  1000 1e-5 .01   1 .9995 43.4
cifar100_ipc50  80 2 40 1000 yes  1000 1e-5 .01   1 .999  50.7
tiny_ipc1       30 2 10    - no  10000 1e-4 .01   1 .999  10.4
tiny_ipc10      20 2 40  500 no  10000 1e-4 .01   1 .999  24.5
imagenette_ipc1  20 2 10  64 no  10000 1e-4 .01   1 .999  52.2
imagenette_ipc10 20 2 10  64 no  10000 1e-4 .01   1 .999  67.7
imagewoof_ipc1   20 2 10  64 no  10000 1e-4 .01   1 .999  30.1
imagewoof_ipc10  20 2 10  64 no  10000 1e-4 .01   1 .999  38.8
imagefruit_ipc1  20 2 10  64 no  10000 1e-4 .01   1 .999  29.1
imagefruit_ipc10 20 2 10  64 no  10000 1e-4 .01   1 .999  44.9
imagemeow_ipc1   20 2 10  64 no  10000 1e-4 .01   1 .999  33.8
imagemeow_ipc10  20 2 10  64 no  10000 1e-4 .01   1 .999  43.3
"""
TESLA = """\
cifar10_ipc1    50 2  5   - no   1000 1e-7 .01 48.5
cifar100_ipc50  80 2 40 125 yes  1000 1e-5 .01 47.9
imagenet1k_ipc1 10 3 10 100 no  10000 1e-4 .01  7.7
"""
# The images are those of all five stages.
PDD = """\
cifar10_ipc10   50 2  5   - yes  1000 1e-7 .01 66.9
cifar10_ipc50   30 2 15 100 yes  1000 1e-5 .01 74.2
cifar100_ipc10  20 3 20 200 yes  1000 1e-5 .01 43.1
cifar100_ipc50  20 2 20 512 yes  1000 1e-5 .01 52.0
tiny_ipc10      20 2 20  64 no  10000 1e-4 .01 27.3
tiny_ipc50      20 2 20  64 no  10000 1e-4 .01    -
"""
# IDC-I with whole images, IDC with four in each: accuracies.
IDC = """\
cifar10_ipc1       36.7 50.6
cifar10_ipc10      58.3 67.5
cifar10_ipc50      69.5 74.5
cifar100_ipc10     36.6 45.1
cifar100_ipc20     41.5 49.0
svhn_ipc1          46.7 68.5
svhn_ipc10         77.0 87.5
svhn_ipc50         87.9 90.1
mnist_ipc1         88.9 94.2
mnist_ipc10        98.0 98.4
mnist_ipc50        98.8 99.1
fashionmnist_ipc1  70.7 81.0
fashionmnist_ipc10 85.3 86.0
fashionmnist_ipc50 89.1 86.2
"""
# The same with nine in each, of ImageNet-10; epochs of an evaluation.
IDC_IMAGENET = """\
imagenet10_ipc10 61.4 72.8 2000 1000
imagenet10_ipc20 65.5 76.6 1500 1000
"""
# PDD on IDC: images of all five stages, outer iterations, accuracy.
PDD_ON_IDC = """\
cifar10_ipc10   2000 67.9
cifar10_ipc50   2000 76.5
cifar100_ipc10  2000 45.8
cifar100_ipc50  1000 53.1
"""
TABLES = {"mtt": MTT, "ftd": FTD, "tesla": TESLA, "pdd": PDD}
UNKNOWN = {"pdd-tiny_ipc50"}  # settings whose accuracy we do not know
_KEYS = [
    "syn_steps",
    "expert_epochs",
    "max_start_epoch",
    "batch_syn",
    "zca",
    "lr_img",
    "lr_lr",
    "lr_teacher",
]
ACCURACIES = {
    "datm": [46.9, 66.8, 76.1, 83.5, 85.5, 27.9, 47.2, 55.0, 57.5, 17.1, 31.1, 39.7],
    "pad": [47.2, 67.4, 77.0, 84.6, 86.7, 28.4, 47.8, 55.9, 58.5, 17.7, 32.3, 41.6],
}


@functools.cache
def read(path: Path) -> DistillConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # our own files have no quirk
        return parse("distill", ["--cfg", str(path)])


def label(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def method_of(path: Path) -> str:
    """The row a file is of; PDD on IDC is IDC's, in stages."""
    return "idc" if path.stem.startswith("idc_") else path.parent.name


def network_of(name: str) -> str:
    if name.startswith(("tiny", "imagenet1k")):
        return "ConvNetD4"
    return "ConvNetD5" if name.startswith("image") else "ConvNet"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_every_file_is_read_without_a_word_and_fits_its_place(path: Path) -> None:
    config = read(path)
    assert config.method == method_of(path) and config.method in METHODS
    assert path.stem.rpartition("_ipc")[2] == str(config.ipc * config.num_intervals)
    stem = path.stem.rpartition("_")[0].removesuffix("_f1").removeprefix("idc_")
    assert stem == (config.subset if config.dataset == "ImageNet" else config.dataset.lower())
    length = LENGTHS[config.method]
    assert config.epochs_read <= length
    whole = config.method in LABELLED and config.dataset != "digits"
    assert config.expert_length == (length if whole else config.epochs_read)
    assert path.read_text().startswith("# ")
    unknown = config.dataset == "digits" or label(path) in UNKNOWN
    assert (config.published is None) == unknown
    experts = {"ftd": f"gsam_alpha{config.alpha:g}", "datm": "gsam_alpha0.3", "pad": "curriculum"}
    assert config.buffer_path.partition("/")[2] == experts.get(config.method, "")


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_file_repeats_nothing_of_its_methods_row(path: Path) -> None:
    row = METHODS[method_of(path)].choices
    values = yaml.safe_load(path.read_text())
    repeated = {name for name in values if name in row and row[name] == values[name]}
    assert repeated <= {*_KEYS, "alpha", "ema_decay"}  # what the published tables list


@pytest.mark.parametrize("method", TABLES)
def test_the_tables_of_mtt_ftd_tesla_and_pdd(method: str) -> None:
    files = {path.stem for path in (CONFIGS / method).glob("*.yaml")}
    files = {name for name in files if not name.startswith(("digits", "idc_"))}
    rows = [line.split() for line in TABLES[method].splitlines()]
    assert {row[0] for row in rows} == files
    for name, *cells in rows:
        config = read(CONFIGS / method / f"{name}.yaml")
        keys = [*_KEYS, *(["alpha", "ema_decay"] if method == "ftd" else []), "published"]
        wanted: dict[str, Any] = {
            key: {"-": None, "yes": True, "no": False}[cell]
            if cell in ("-", "yes", "no")
            else float(cell)
            for key, cell in zip(keys, cells, strict=True)
        }
        assert {key: getattr(config, key) for key in keys} == wanted, name
        assert config.model == network_of(name)
        assert config.rho_max == (0.01 if method == "ftd" else None)
        if method == "tesla":
            assert (config.gradient, config.legacy_scale) == ("tesla", True)
            assert (config.Iteration, config.num_eval) == (10000, 3)
            assert config.labels == ("teacher" if name.startswith("imagenet1k") else "hard")
        else:
            assert (config.gradient, config.labels, config.Iteration) == ("exact", "hard", 5000)


def test_the_tables_of_idc_and_of_pdd_on_it() -> None:
    presets = {  # of the program's --reproduce
        "cifar": dict(metric="mse", lr_img=5e-3, n_data=2000),
        "svhn": dict(metric="mse", lr_img=5e-3, n_data=500),
        "mnist": dict(metric="l1", lr_img=1e-4, n_data=500),
        "fashionmnist": dict(metric="l1", lr_img=1e-4, n_data=500),
    }
    names = set()
    for line in IDC.splitlines():
        name, *accuracies = line.split()
        data, _, ipc = name.partition("_ipc")
        for factor, accuracy in zip((1, 2), accuracies, strict=True):
            stem = f"{data}_f1_ipc{ipc}" if factor == 1 else name
            config, plain = read(CONFIGS / "idc" / f"{stem}.yaml"), stem == "svhn_f1_ipc1"
            wanted = {
                **presets[data.rstrip("0123456789")],
                **dict(objective="gradmatch", factor=factor, ipc=int(ipc), mix_p=0.5),
                **dict(Iteration=1999, inner_loop=100, published=float(accuracy)),
                **dict(mixup_net="vanilla" if plain else "cut", net_lr=0.01, model="ConvNet"),
            }
            assert {key: getattr(config, key) for key in wanted} == wanted, stem
            assert ("flip" in config.dsa_strategy) == (data not in ("svhn", "mnist"))
            names.add(stem)
    for line in IDC_IMAGENET.splitlines():
        name, *cells = line.split()
        data, _, ipc = name.partition("_ipc")
        for factor, accuracy, epochs in zip((1, 3), cells[:2], cells[2:], strict=True):
            stem = f"{data}_f1_ipc{ipc}" if factor == 1 else name
            config = read(CONFIGS / "idc" / f"{stem}.yaml")
            wanted = {
                **dict(objective="gradmatch", metric="l1", lr_img=3e-3, n_data=500, early=10),
                **dict(Iteration=499, inner_loop=100, mix_p=1.0, net_lr=0.01, net_batch=64),
                **dict(model="ResNetAP-10", res=224, crop=True, protocol="idc", factor=factor),
                "decode_type": "bound" if (factor, ipc) == (3, "20") else "single",
                **dict(ipc=int(ipc), published=float(accuracy), epoch_eval_train=int(epochs)),
            }
            assert {key: getattr(config, key) for key in wanted} == wanted, stem
            shape, kind = (3, 224, 224), ("idc", "ResNetAP-10")
            assert usual_epochs(*kind, shape, 10, int(ipc), factor**2) == int(epochs)
            names.add(stem)
    files = {path.stem for path in (CONFIGS / "idc").glob("*.yaml")}
    assert files == names | {"digits_ipc1"}
    for line in PDD_ON_IDC.splitlines():
        name, iterations, accuracy = line.split()
        config = read(CONFIGS / "pdd" / f"idc_{name}.yaml")
        assert (config.num_intervals, config.Iteration) == (5, int(iterations) - 1)
        assert (config.published, config.n_data, config.factor) == (float(accuracy), 2000, 2)
        assert (config.protocol, config.epoch_eval_train) == ("idc", 500)
        assert config.earlier_epochs == 200


@pytest.mark.parametrize("method", ["datm", "pad"])
def test_the_tables_of_datm_and_pad(method: str) -> None:
    files = {path.stem for path in (CONFIGS / method).glob("*.yaml")} - {"digits_ipc1"}
    assert files == {f"{SETS[row['dataset']]}_ipc{row['ipc']}" for row in ROWS[method]}
    for row, accuracy in zip(ROWS[method], ACCURACIES[method], strict=True):
        config = read(CONFIGS / method / f"{SETS[row['dataset']]}_ipc{row['ipc']}.yaml")
        wanted = {**means(row, method), "published": accuracy}
        if not wanted["Sequential_Generation"]:
            wanted.pop("expansion_end_epoch", None)
        assert {name: getattr(config, name) for name in wanted} == wanted, names_of(row)


def test_the_curriculum_of_pads_readme() -> None:
    curriculum = {
        **dict(init_ratio=0.75, add_end_epoch=20, rm_epoch_first=40, rm_epoch_second=60),
        **dict(rm_easy_ratio_first=0.1, rm_easy_ratio_second=0.2, ratio=0.0),
    }
    for row in ROWS["pad"]:
        config = read(CONFIGS / "pad" / f"{SETS[row['dataset']]}_ipc{row['ipc']}.yaml")
        assert {name: getattr(config, name) for name in curriculum} == curriculum
        order = {"Tiny": "TinyImageNet_GraNd"}.get(row["dataset"], f"{row['dataset']}_GraNd")
        assert config.sort_method == order
