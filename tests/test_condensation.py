"""Gradient matching as a run: golden runs against class after class, stages, how it goes on."""

import json
from dataclasses import replace

import in_memory
import published_dsa
import pytest
import straight_idc
import straight_line
import test_golden
import torch
from compare import assert_close
from test_gradmatch import by_words
from tolerances import FORMULA

from fastmtt import draws
from fastmtt.cutmix import CutMix
from fastmtt.diffaug import DiffAug
from fastmtt.errors import FastmttError
from fastmtt.stages import Stage
from fastmtt.student import initial_weights
from fastmtt.synthetic import Synthetic
from fastmtt.turns import Turns

dataset, unscored = test_golden.dataset, test_golden.unscored
MODEL, COUNT = "ConvNetD2W8", 42
KEYS = dict(
    **dict(model=MODEL, factor=1, inner_loop=3, batch_real=5, n_data=10, net_batch=4),
    **dict(net_lr=0.05, mixup_net="vanilla", lr_img=2.0, earlier_epochs=6, zca=False),
)


def began(path, dataset, stage=None, experts=(), **keys):
    """A run ready to step; what trajectories alone are told is left at its default."""
    config = replace(in_memory.configured("idc", **{**KEYS, **keys}))
    stages = {} if stage is None else {"stage": stage}
    run = in_memory.began(path, config, dataset, list(experts), **stages)
    run.begin()
    return run


def augmented(drawn, x):
    """The operations of one student's draw, one after another, by the published formulas."""
    for kind, values in zip(*drawn, strict=True):
        values = values[0].double().expand(len(x), -1)
        x = published_dsa.augment(x, int(kind[0]), values)
    return x


def given_to(run, parts=((slice(None), 1),), **others):
    """What the program is given: the run's start, and its draws by their keys."""
    config, data = run.config, run.dataset
    seed = run.stage.seed(config.seed)

    def weights(it):
        make = lambda: in_memory.network_of(MODEL)  # noqa: E731
        return initial_weights(make, seed, "inner network init", it).double(), 0.0

    def real(number, c):
        rows = (data.train_labels == c).nonzero().flatten()
        turn, place = divmod(number, len(rows) // config.batch_real)
        order = draws.stream(seed, "match real", c, turn).permutation(len(rows))
        return rows[order][place * config.batch_real :][: config.batch_real]

    def batches(it, inner):
        seen = draws.stream(seed, "inner rows", it, inner).permutation(COUNT)[:12]
        order = draws.stream(seed, "inner network shuffle", it, inner).permutation(12)
        rows = torch.from_numpy(seen[order]).split(4)
        augment = [lambda x: x] * 3
        mixes = [([*range(4)], (0, 0, 0, 0))] * 3
        if config.dsa:
            rng, names = draws.stream(seed, "inner network dsa", it, inner), "color_crop"
            drawn = [DiffAug(names).draw(rng, 4, in_memory.SHAPE) for _ in range(3)]
            augment = [lambda x, one=one: one_by_one(one, x) for one in drawn]
        if config.mixup_net == "cut":
            rng, cutmix = draws.stream(seed, "inner network cutmix", it, inner), CutMix(3, 0.5)
            drawn = [cutmix.draw(rng, 4, in_memory.SHAPE)[0].tolist() for _ in range(3)]
            mixes = [(row[:4], tuple(row[4:])) for row in drawn]
        return [(r, a, *mix) for r, a, mix in zip(rows, augment, mixes, strict=True)]

    return straight_idc.Given(
        in_memory.network_of(MODEL),
        run.set.images.clone(),
        run.set.labels.clone(),
        config.lr_teacher,
        data.train_images,
        data.train_labels,
        others.pop("weights", weights),
        real,
        batches,
        lambda g, r: by_words(g.view(len(g), -1), r.view(len(r), -1), config.metric),
        [*parts],
        **others,
    )


def one_by_one(drawn, x):
    """As :func:`augmented`, each image with values of its own."""
    for kind, values in zip(*drawn, strict=True):
        x = published_dsa.augment(x, int(kind[0]), values[0].double())
    return x


def rate_of(config):
    return config.lr_img * 2 / 10 * (8 / 32) ** 2


def compare(run, given, **more):
    program = straight_idc.idc(given, run.config, rate=rate_of(run.config), **more)
    test_golden.compare(run, given, program)


# -- golden runs


@pytest.mark.parametrize("metric", ["mse", "l1", "l1_mean", "cos"])
def test_every_metric(tmp_path, dataset, metric):
    run = began(tmp_path, dataset, metric=metric)
    compare(run, given_to(run))


@pytest.mark.parametrize(
    ("keys", "parts", "count"),
    [
        (dict(), [(slice(None), 2)], 8),
        (dict(factor=3), [(slice(None), 3)], 18),
        (dict(decode_type="multi"), [(slice(None), 1), (slice(None), 2)], 10),
        (
            dict(decode_type="bound", batch_syn_max=6),
            [(slice(0, 1), 2), (slice(1, 2), 1)],
            5,
        ),
    ],
    ids=["single", "single, side not divided", "multi", "bound"],
)
def test_every_decode(tmp_path, dataset, keys, parts, count):
    keys = {"factor": 2, "pix_init": "noise" if "factor" in keys else "real", **keys}
    run = began(tmp_path, dataset, **keys)
    assert run.set.parametrisation.count(2) == count
    compare(run, given_to(run, parts))


def test_some_of_many_and_every_switch(tmp_path, dataset):
    """A random subset, biases and classifier, another momentum's place: draws and tensors."""
    run = began(tmp_path, dataset, factor=2, batch_syn_max=3, bias=True, fc=True, net_epoch=1)

    def chosen(number, c):
        rng = draws.stream(run.config.seed, "match subset", number, c)
        return torch.from_numpy(rng.permutation(8)[:3])

    compare(run, given_to(run, [(slice(None), 2)], chosen=chosen, axes={1, 2, 4}))


def test_augmented_and_mixed(tmp_path, dataset):
    """One draw a class for its real and its synthetic images; networks on mixed real ones."""
    run = began(tmp_path, dataset, factor=2, dsa=True, mixup_net="cut", mix_p=0.5)
    seen = set()

    def shared(number, c, x):
        rng = draws.stream(run.config.seed, "match dsa", number, c)
        drawn = DiffAug("color_crop_cutout", shared=True).draw(rng, 1, in_memory.SHAPE)
        seen.update(drawn.kind.flatten().tolist())
        return augmented(drawn, x)

    given = given_to(run, [(slice(None), 2)], shared=shared)
    boxes = {box for it in range(3) for i in range(2) for *_, box in given.batches(it, i)}
    assert len(boxes) > 3, "some batches are mixed"
    compare(run, given)
    assert seen == {published_dsa.COLOR, published_dsa.CROP, published_dsa.CUTOUT}


def after_earlier(network, theta, images, labels, number, seed, member, o):
    """Plain loops over each earlier set, all images up to it: 6 epochs, less from 4 and 5 on."""
    for earlier in range(1, number + 1):
        count, momentum = 6 * earlier, 0.0
        for epoch in range(6):
            rng = draws.stream(seed, f"earlier set {earlier} shuffle", member, epoch)
            lr = o.net_lr * 0.2 ** ((epoch >= 4) + (epoch >= 5))
            for rows in torch.from_numpy(rng.permutation(count)).split(4):
                nothing = [*range(len(rows))], (0, 0, 0, 0)
                x = (images[rows] - 0.5) / 0.25
                theta, momentum = straight_idc.step(
                    *(network, theta, momentum, x, labels[rows], *nothing, lr, o.net_wd)
                )
    return theta


@pytest.mark.parametrize("number", [1, 2])
def test_pdds_stages(tmp_path, dataset, number):
    """A later stage's networks have been trained on the earlier sets, whose rows stay."""
    run = began(tmp_path / "1", dataset, num_intervals=3)
    run.distil(None, run.run)
    one = run.set.detached()
    images = torch.cat([one.images, 1 - one.images])
    sets = [
        one.with_tensors(images[: 6 * earlier], one.labels.repeat(earlier), one.lr)
        for earlier in range(1, number + 1)
    ]
    stage, union = Stage(tuple(sets)), sets[-1]
    seed = stage.seed(0)
    second = began(tmp_path / "2", dataset, stage, num_intervals=3)
    config, network = second.config, in_memory.network_of(MODEL)
    assert len(second.set.images) == 6 * number + 6
    assert (second.set.images[-6:] - one.images).norm() > 1, "new images are others"

    def weights(it):
        make = lambda: in_memory.network_of(MODEL)  # noqa: E731
        theta = initial_weights(make, seed, "inner network init", it).double()
        more = network, theta, union.images, union.labels, number, seed, it, config
        return after_earlier(*more), 0.0

    compare(second, given_to(second, weights=weights), frozen=6 * number)
    kept = second.set.images[: 6 * number]
    assert torch.equal(kept, union.images.clamp(0, 1)), "but for the clamp they stay"
    assert [record["iteration"] for record in second.run.records] == [
        3 * number + it for it in range(3)
    ]


def test_networks_begin_as_experts_and_see_all_images_early(tmp_path, dataset):
    experts = in_memory.train_experts(MODEL, dataset)
    run = began(tmp_path, dataset, experts=experts, pt_from=2, early=2)
    config = run.config
    assert config.reads_experts and config.epochs_read == 2

    def weights(it):
        pick = int(draws.stream(0, "pretrained", it).integers(2))
        theta, momentum = experts[pick][2], 0.0
        for epoch in range(2):
            rng = draws.stream(0, "early shuffle", it, epoch)
            for rows in torch.from_numpy(rng.permutation(COUNT)).split(4):
                x, y = dataset.train_images[rows], dataset.train_labels[rows]
                nothing = [*range(len(rows))], (0, 0, 0, 0)
                network = in_memory.network_of(MODEL)
                theta, momentum = straight_idc.step(
                    *(network, theta, momentum, x, y, *nothing, config.net_lr, config.net_wd)
                )
        return theta, momentum

    compare(run, given_to(run, weights=weights))


def test_decoded_images_go_with_trajectories(tmp_path, dataset):
    run = test_golden.distilled(tmp_path, "mtt", dataset, model=MODEL, factor=2)

    def windows(it, step, stored, labels):
        return straight_idc.decoded(stored, [(slice(None), 2)]), torch.cat([labels] * 4)

    given = test_golden.given_to(run, windows=windows)
    test_golden.compare(run, given, straight_line.mtt(given, run.config))


# -- turns


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("classes", [1, 5])
def test_turns_are_an_optimiser_that_steps_once_a_class(momentum, classes):
    """Three rounds; a class's gradient depends on its images as they are in its turn."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(classes, 2, 1, 3, 3, generator=random, dtype=torch.float64)
    goals = torch.randn(images.shape, generator=random, dtype=torch.float64)
    plain = images.clone().requires_grad_()
    optimiser = torch.optim.SGD([plain], 0.3, momentum)
    velocity, turns = torch.zeros_like(images), Turns(classes, 0.3, momentum, images)
    for _ in range(3):
        for c in range(classes):
            optimiser.zero_grad(set_to_none=False)
            (plain[c] - goals[c]).pow(4).sum().backward()
            torch.nn.utils.clip_grad_value_(plain, 1.0)
            optimiser.step()
        turns.wait(images, velocity)
        g = (4 * (images - goals) ** 3).clamp(-1, 1)
        turns.take(images, velocity, g)
        assert_close(images, plain, FORMULA)
    if momentum:
        assert_close(velocity, optimiser.state[plain]["momentum_buffer"], FORMULA)


# -- how it goes on

WAYS = {
    "plain": dict(),
    "all": dict(factor=2, dsa=True, mixup_net="cut", early=1, batch_syn_max=4, metric="l1"),
    "a later stage": dict(num_intervals=2),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_goes_on_to_the_bits_of_one_never_stopped(tmp_path, dataset, way):
    keys, stage = WAYS[way], None
    if way == "a later stage":
        images = torch.rand(6, *in_memory.SHAPE, dtype=torch.float64)
        labels = torch.arange(3).repeat_interleave(2)
        stage = Stage((Synthetic(images, labels, torch.tensor(0.01, dtype=torch.float64)),))
    whole, first, second = (
        began(tmp_path / name, dataset, stage, **keys) for name in ("whole", "first", "second")
    )
    losses = [whole.step() for _ in range(4)]
    assert [first.step() for _ in range(2)] == losses[:2]
    first.run.save_checkpoint(first.state())
    second.restore(first.run.load_checkpoint())
    assert [second.step() for _ in range(2)] == losses[2:]
    (wanted, values), (tensors, others) = whole.state(), second.state()
    assert tensors.keys() == wanted.keys() >= {"images", "momentum_images"}
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert tensors["momentum_images"].norm() > 0
    for timed in (values, others):
        timed.pop("seconds")
    assert json.dumps(values) == json.dumps(others)


@pytest.mark.parametrize("change", [None, lambda t: t[1:]])
def test_a_checkpoint_without_its_momentum_is_refused(tmp_path, dataset, change):
    run = began(tmp_path, dataset)
    tensors, values = run.state()
    momentum = tensors.pop("momentum_images")
    if change is not None:
        tensors["momentum_images"] = change(momentum)
    with pytest.raises(FastmttError, match="the checkpoint does not fit this run"):
        run.restore((tensors, values))


def test_a_run_that_goes_astray_ends_with_what_to_lower(tmp_path, dataset):
    run = began(tmp_path, dataset, lr_img=1e300)
    with pytest.raises(FastmttError, match=r"went astray: .*; lower lr_img \(the best"):
        run.step()


def test_classes_match_alike_however_many_at_once(tmp_path, dataset, monkeypatch):
    runs = [began(tmp_path / name, dataset, factor=2) for name in ("together", "apart")]
    together = runs[0].step()
    monkeypatch.setattr("fastmtt.condensation._AT_ONCE", 2)
    assert runs[1].step() == together
    assert torch.equal(runs[0].set.images, runs[1].set.images)


def test_whitened_images_are_refused(tmp_path, dataset):
    class Whitened:
        mean = None

    with pytest.raises(FastmttError, match=r"images in \[0,1\] .* whitened; set zca to false"):
        began(tmp_path, replace(dataset, space=Whitened()))
