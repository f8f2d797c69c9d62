"""The protocols of evaluation: hand numbers, draws, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from fastmtt.cutmix import CutMix
from fastmtt.diffaug import DiffAug
from fastmtt.errors import FastmttError
from fastmtt.options import BaseConfig, EvaluateConfig
from fastmtt.protocol import IDCProtocol, make_protocol
from fastmtt.training import Examples


def dataset(name="CIFAR10", side=32):
    return SimpleNamespace(name=name, image_shape=(3, side, side), classes=tuple("abcd"))


def idc(name="CIFAR10", side=32, epochs=1000, **asked):
    return make_protocol(
        "idc", BaseConfig(), dataset(name, side), networks=2, epochs=epochs, **asked
    )


def test_idcs_recipe_by_hand():
    protocol = idc()
    recipe = protocol.recipe(Examples(torch.zeros(100, 3, 32, 32), torch.zeros(100).long()), [0.01])
    assert (recipe.epochs, recipe.batch_size, recipe.momentum) == (1000, 64, 0.9)
    assert (recipe.weight_decay, recipe.milestones, recipe.gamma) == (5e-4, (666, 833), 0.2)
    assert recipe.cutmix == CutMix(4, chance=0.5) and recipe.decay_after is None
    once = idc(epochs=1).recipe(Examples(torch.zeros(9, 3, 32, 32), torch.zeros(9).long()), [0.01])
    assert once.milestones == (), "a single epoch is trained at the rate itself"
    assert protocol.length == 1000 and protocol.rate(0.7) == 0.01


def test_cutmix_takes_cutouts_place_and_digits_are_not_flipped():
    names = {name: idc(name).augment.names for name in ("CIFAR10", "SVHN", "MNIST")}
    assert names["CIFAR10"] == ["color", "crop", "flip", "scale", "rotate"]
    assert names["SVHN"] == names["MNIST"] == ["color", "crop", "scale", "rotate"]
    assert isinstance(idc().augment, DiffAug)


def test_batch_and_rate_may_be_given():
    protocol = idc(batch_train=16, lr=0.1)
    assert isinstance(protocol, IDCProtocol)
    assert protocol.batch_train == 16 and protocol.rate(0.7) == 0.1


def test_mtts_goes_by_the_configuration_and_the_learned_rate():
    protocol = make_protocol("mtt", BaseConfig(), dataset(), networks=5, epochs=1000)
    recipe = protocol.recipe(Examples(torch.zeros(10, 3, 32, 32), torch.zeros(10).long()), [0.7])
    assert (protocol.length, protocol.rate(0.7), recipe.decay_after) == (1001, 0.7, 501)
    assert recipe.cutmix is None and not recipe.milestones and recipe.batch_size == 10


def test_what_idcs_does_not_serve_is_refused():
    with pytest.raises(FastmttError, match="up to 64 pixels"):
        idc("ImageNet", 128)
    with pytest.raises(FastmttError, match="what IDC does with ImageNet's"):
        idc("ImageNet", 224)
    with pytest.raises(FastmttError, match="got 0"):
        idc(epochs=0)
    with pytest.raises(FastmttError, match="leave out lr_dir"):
        EvaluateConfig(data_dir="data.pt", lr_dir="lr.pt", protocol="idc")
    with pytest.raises(FastmttError, match="factor is 2"):
        EvaluateConfig(run="run", factor=2)
