"""The protocols of evaluation: hand numbers, draws, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from fastmtt.cutmix import CutMix
from fastmtt.data import Normalised
from fastmtt.diffaug import DiffAug
from fastmtt.errors import FastmttError
from fastmtt.imagenet_augment import ImageNetAugment
from fastmtt.options import BaseConfig, EvaluateConfig
from fastmtt.protocol import IDCProtocol, make_protocol, usual_epochs, usual_tests
from fastmtt.training import Examples


def dataset(name="CIFAR10", side=32, classes=4, channels=3, space=None):
    space = space or Normalised([0.5] * channels, [0.25] * channels)
    shape = channels, side, side
    return SimpleNamespace(name=name, image_shape=shape, classes=range(classes), space=space)


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


def test_imagenets_recipe_by_hand():
    few, many = (
        make_protocol("idc", BaseConfig(), dataset("ImageNet", 224, k), networks=1, epochs=6)
        for k in (10, 100)
    )
    some = Examples(torch.zeros(200, 3, 2, 2), torch.zeros(200).long())
    for protocol, lr, decay, batch in ((few, 0.01, 5e-4, 64), (many, 0.1, 1e-4, 128)):
        recipe = protocol.recipe(some, [protocol.rate(0.7)])
        assert (recipe.lr, recipe.weight_decay, recipe.batch_size) == ([lr], decay, batch)
        assert recipe.cutmix.chance == 1 and isinstance(recipe.augment, ImageNetAugment)
    plain = BaseConfig(dsa=False)
    assert make_protocol("idc", plain, dataset(side=224), networks=1, epochs=1).augment is None


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        (("mtt", "ConvNet", 32, 10, 50, 4), 1000),
        (("idc", "ConvNet", 32, 10, 50, 4), 1000),
        (("idc", "DenseNet", 32, 10, 50, 4), 400),
        (("idc", "DenseNet", 32, 10, 50, 1), 1000),
        (("idc", "DenseNet", 32, 10, 10, 4), 1000),
        (("idc", "ResNetAP-10", 224, 10, 1, 1), 3000),
        (("idc", "ResNetAP-10", 224, 10, 1, 9), 2000),
        (("idc", "ResNetAP-10", 224, 10, 10, 1), 2000),
        (("idc", "ResNetAP-10", 224, 10, 20, 1), 1500),
        (("idc", "ResNetAP-10", 224, 10, 10, 9), 1000),
        (("idc", "ResNetAP-10", 224, 10, 50, 9), 500),
        (("idc", "ResNetAP-10", 224, 10, 100, 9), 300),
        (("idc", "ResNetAP-10", 224, 100, 20, 9), 666),
        (("idc", "ConvNet", 32, 10, 50, 4, 5), 500),
        (("mtt", "ConvNet", 32, 10, 50, 4, 5), 1000),
    ],
)
def test_epochs_as_published(given, epochs):
    kind, model, side, *rest = given
    assert usual_epochs(kind, model, (3, side, side), *rest) == epochs
    assert usual_tests(1) == 4 and usual_tests(5) == 50


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
    for given, says in ((dict(space="whitened"), "is whitened"), (dict(channels=1), "no colours")):
        with pytest.raises(FastmttError, match=f"{says}; set dsa to false"):
            make_protocol("idc", BaseConfig(), dataset("x", 65, **given), networks=1, epochs=1)
    with pytest.raises(FastmttError, match="got 0"):
        idc(epochs=0)
    with pytest.raises(FastmttError, match="leave out lr_dir"):
        EvaluateConfig(data_dir="data.pt", lr_dir="lr.pt", protocol="idc")
    with pytest.raises(FastmttError, match="same_compute is true, but protocol mtt"):
        EvaluateConfig(run="run", same_compute=True)
    with pytest.raises(FastmttError, match="factor is 2"):
        EvaluateConfig(run="run", factor=2)
