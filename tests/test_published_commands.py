"""The published programs' commands, the program's name changed and the method added."""

import re
from typing import Any

import pytest
from saying import said

from fastmtt.errors import FastmttError
from fastmtt.options import BufferConfig, DistillConfig, EvaluateConfig

# MTT's README; DC-BENCH's table as flags; FTD's README and script; TESLA's README. Each with the
# method added, and with what it must mean, by key.
DISTILLATIONS = [
    (
        "--dataset=CIFAR100 --ipc=1 --syn_steps=20 --expert_epochs=3 --max_start_epoch=20 --zca "
        "--lr_img=1000 --lr_lr=1e-05 --lr_teacher=0.01 --buffer_path=b --data_path=d --method=mtt",
        dict(dataset="CIFAR100", max_start_epoch=20, zca=True, buffer_path="b", data_path="d"),
    ),
    (
        "--dataset=ImageNet --subset=imagefruit --model=ConvNetD5 --ipc=1 --res=128 --syn_steps=20 "
        "--expert_epochs=2 --max_start_epoch=10 --lr_img=1000 --lr_lr=1e-06 --lr_teacher=0.01 "
        "--method=mtt",
        dict(
            dataset="ImageNet",
            subset="imagefruit",
            model="ConvNetD5",
            res=128,
            expert_epochs=2,
            max_start_epoch=10,
            lr_lr=1e-6,
        ),
    ),
    (
        "--method ftd --dataset=CIFAR10 --ipc=10 --syn_steps=30 --expert_epochs=2 "
        "--max_start_epoch=20 --zca --lr_img=100 --lr_lr=1e-05 --lr_teacher=0.001 "
        "--ema_decay=0.9995 --Iteration=5000",
        dict(
            method="ftd",
            ipc=10,
            syn_steps=30,
            expert_epochs=2,
            max_start_epoch=20,
            zca=True,
            lr_img=100.0,
            lr_teacher=0.001,
            ema_decay=0.9995,
            rho_max=0.01,
            alpha=0.3,
        ),
    ),
    (
        "--method ftd --dataset=CIFAR100 --ipc=10 --syn_steps=20 --expert_epochs=2 "
        "--max_start_epoch=40 --zca --lr_img=1000 --lr_lr=1e-05 --lr_teacher=0.01 "
        "--ema_decay=0.9995 --Iteration=5000",
        dict(
            method="ftd",
            dataset="CIFAR100",
            ipc=10,
            expert_epochs=2,
            max_start_epoch=40,
            zca=True,
            ema_decay=0.9995,
            rho_max=0.01,
            alpha=0.3,
        ),
    ),
    (
        "--method=tesla --dataset=CIFAR10 --ipc=1 --syn_steps=50 --expert_epochs=2 "
        "--max_start_epoch=5 --lr_img=1000 --lr_lr=1e-07 --lr_teacher=0.01",
        dict(
            **dict(method="tesla", gradient="tesla", legacy_scale=True, Iteration=10000),
            **dict(num_eval=3, syn_steps=50, expert_epochs=2, max_start_epoch=5, lr_lr=1e-7),
        ),
    ),
    (
        "--method=tesla --dataset=CIFAR100 --ipc=50 --syn_steps=80 --expert_epochs=2 "
        "--max_start_epoch=40 --lr_img=1000 --lr_lr=1e-05 --lr_teacher=0.01 --batch_syn=125  --zca",
        dict(
            **dict(method="tesla", gradient="tesla", legacy_scale=True, Iteration=10000),
            **dict(num_eval=3, dataset="CIFAR100", ipc=50, syn_steps=80, expert_epochs=2),
            **dict(max_start_epoch=40, batch_syn=125, zca=True),
        ),
    ),
]


@pytest.mark.parametrize(("flags", "means"), DISTILLATIONS)
def test_the_published_distillations_are_read(flags: str, means: dict[str, Any]) -> None:
    config, warned = said("distill", flags.split())
    assert config == DistillConfig(**means)
    assert warned == []


def test_idcs_flags_are_read() -> None:
    flags = (
        "-d cifar100 -f 2 -n convnet --ipc 10 --decode_type bound --init mix --match grad --metric "
        "mse --niter 2000 --inner_loop 50 --n_data 2000 --lr_img 5e-3 --lr 0.01 --wd 5e-4 "
        "--batch_size 64 --mix_p 0.5 --fix_iter -1 --reproduce --repeat 3 --depth 3 --method idc"
    )
    config, warned = said("distill", flags.split())
    assert config == DistillConfig(
        **dict(dataset="CIFAR100", ipc=10, factor=2, decode_type="bound", metric="mse"),
        **dict(Iteration=3999, inner_loop=50, n_data=2000, lr_img=5e-3, mix_p=0.5, num_eval=3),
        **dict(method="idc", objective="gradmatch", batch_train=64, eval_it=200),
    )
    assert warned == [
        "dataset cifar100 is taken as dataset CIFAR100, its name here",
        "net_type convnet is taken as model ConvNet, its name here",
        "init mix is taken as pix_init real, its name here",
        "match is ignored: grad is what happens here anyway",
        "niter is taken as Iteration 3999, which counts from 0",
        "lr is taken as net_lr, its name here",
        "wd is taken as net_wd, its name here",
        "batch_size is taken as net_batch, its name here",
        "fix_iter is ignored: -1 is what happens here anyway",
        "reproduce is ignored: configs/idc has the values it stands for, a file for each setting",
        "repeat is taken as num_eval, its name here",
        "depth is ignored: 3 is what happens here anyway",
    ]


def test_pdds_flags_on_idc_are_read() -> None:
    flags = "--method idc -d cifar10 -f 2 --ipc 2 --niter 2000 --num-intervals 5 --start-interval 0"
    config, _ = said("distill", flags.split())
    assert (config.num_intervals, config.ipc, config.Iteration) == (5, 2, 1999)
    for flags, choice in {
        "--match feat": "IDC's matching of features (match: feat)",
        "--nclass 100": "a number of ImageNet's classes, for which subset stands",
    }.items():
        with pytest.raises(FastmttError, match=re.escape(choice)):
            said("distill", flags.split())


def test_tesla_means_all_of_imagenet() -> None:
    flags = (
        "--dataset=ImageNet --ipc=1 --syn_steps=10 --expert_epochs=3 --max_start_epoch=10 "
        "--lr_img=10000 --lr_lr=1e-04 --lr_teacher=0.01 --batch_syn=100 --model=ConvNetD4 "
        "--teacher_label --method tesla"
    )
    config, warned = said("distill", flags.split())
    assert (config.dataset, config.labels, config.lr_img) == ("ImageNet1K", "teacher", 10000)
    assert warned == [
        "teacher_label is taken as labels: teacher",
        "dataset ImageNet is taken as ImageNet1K, which TESLA's program means by it; name a subset "
        "to distil one",
    ]
    flags = "--dataset=ImageNet --model=ConvNetD4 --train_epochs=50 --num_experts=50 --method=tesla"
    config, warned = said("buffer", flags.split())
    assert config == BufferConfig(
        dataset="ImageNet1K", model="ConvNetD4", num_experts=50, method="tesla"
    )
    flags = "--method tesla --dataset ImageNet --subset imagewoof --teacher_label False"
    config, warned = said("distill", flags.split())
    assert (config.dataset, config.subset, config.labels) == ("ImageNet", "imagewoof", "hard")
    assert warned == ["teacher_label is ignored: false is what happens here anyway"]


def test_flags_that_programs_take_besides_are_named() -> None:
    flags = "--lr_init 0.01 --eval_mode S --dsa True --load_all --max_files null --no_aug False"
    config, warned = said("distill", flags.split())
    assert config == DistillConfig()
    assert [line.split()[0] for line in warned] == ["lr_init", "eval_mode", "load_all", "max_files"]


EXPERTS = "--train_epochs=100 --num_experts=100 --zca --buffer_path=b --data_path=d "
GSAM = "--rho_max=0.01 --rho_min=0.01 --alpha=0.3 --lr_teacher=0.01 --mom=0. --batch_train=256 "
RHO_MIN = "rho_min has no effect of its own: the radius is rho_max all the time, wanted equal"
# MTT's and TESLA's buffer.py, buffer_FTD.py, buffer_CL.py, buffer_RM.py.
BUFFERS = [
    (
        "--dataset=CIFAR100 --model=ConvNet --train_epochs=50 --num_experts=100 --zca "
        "--buffer_path=b --data_path=d --save_interval 10",
        dict(dataset="CIFAR100", buffer_path="b", data_path="d", zca=True),
        ["save_interval is ignored: every expert has a file of its own"],
    ),
    (
        f"--dataset=CIFAR10 --model=ConvNet {EXPERTS} {GSAM} --method datm",
        dict(
            **dict(train_epochs=100, zca=True, buffer_path="b", data_path="d"),
            **dict(rho_max=0.01, rho_min=0.01, alpha=0.3, method="datm"),
        ),
        [RHO_MIN],
    ),
    (
        f"--dataset=CIFAR10 --model=ConvNet {EXPERTS} --sort_method=CIFAR10_GraNd {GSAM} "
        "--init_ratio=0.75 --add_end_epoch=20 --rm_epoch_first=40 --rm_epoch_second=60 "
        "--rm_easy_ratio_first=0.1 --rm_easy_ratio_second=0.2 --add_hard True --method pad",
        dict(
            **dict(train_epochs=100, zca=True, buffer_path="b", data_path="d"),
            **dict(rho_max=0.01, rho_min=0.01, alpha=0.3, sort_method="CIFAR10_GraNd"),
            **dict(init_ratio=0.75, add_end_epoch=20, rm_epoch_first=40, rm_epoch_second=60),
            **dict(rm_easy_ratio_first=0.1, rm_easy_ratio_second=0.2, method="pad"),
        ),
        [RHO_MIN, "add_hard is ignored: PAD's buffer programs do not read it"],
    ),
    (
        f"--dataset=CIFAR10 {EXPERTS} --sort_method=CIFAR10_GraNd --ratio 0.2 "
        "--remove_strategy easy --bins_path bins --method pad",
        dict(
            **dict(train_epochs=100, zca=True, buffer_path="b", data_path="d"),
            **dict(rho_max=0.01, alpha=0.3, sort_method="CIFAR10_GraNd", ratio=0.2),
            **dict(remove_strategy="easy", method="pad"),
        ),
        ["bins_path is ignored: PAD's buffer programs do not read it"],
    ),
    (
        "--loss_type ce --sort_method= --method ftd --adaptive True",
        dict(rho_max=0.01, alpha=0.3, method="ftd"),
        [
            "loss_type is ignored: ce is what happens here anyway",
            "sort_method is empty, taken as null",
        ],
    ),
]


@pytest.mark.parametrize(("flags", "means", "warned"), BUFFERS)
def test_the_published_buffers_are_read(
    flags: str, means: dict[str, Any], warned: list[str]
) -> None:
    assert said("buffer", flags.split()) == (BufferConfig(**means), warned)


def test_the_published_evaluation_is_read() -> None:
    flags = (
        "--zca --dataset CIFAR10 --data_dir x/images_best.pt --label_dir l --lr_dir r "
        "--lr_teacher 0.01 --no_aug False"
    )
    config, warned = said("evaluate", flags.split())
    assert config == EvaluateConfig(
        data_dir="x/images_best.pt", label_dir="l", lr_dir="r", dataset="CIFAR10", zca=True
    )
    assert [line.split()[0] for line in warned] == ["lr_teacher", "no_aug"]
