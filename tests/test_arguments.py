"""Misuse of the public calls: one clear sentence each, and no state spoiled."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastmtt
from fastmtt.student import ConvNetStudent, flatten_parameters, make_student
from fastmtt.student.zoo import ConvNet

SHAPE, CLASSES = (3, 8, 8), 5


class Scaled(ConvNet):
    """A ConvNet but for a factor that a classifier of zeros hides."""

    def forward(self, x):
        return 3 * super().forward(x)


class Dropping(nn.Module):
    """Draws numbers without any dropout layer to be seen."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(192, CLASSES)

    def forward(self, x):
        return self.linear(F.dropout(x.flatten(1), 0.5, self.training))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return ConvNet(SHAPE, CLASSES, depth=2, width=8)


@pytest.fixture
def given(net):
    """Arguments that work; tests spoil one."""
    start = flatten_parameters(net)
    return {
        "start": start,
        "target": start + 0.01 * torch.randn_like(start),
        "images": torch.randn(6, *SHAPE),
        "labels": torch.arange(6) % CLASSES,
        "lr": 0.1,
        "steps": 2,
    }


def match(net, given, **changes):
    return fastmtt.match_trajectory(net, **{**given, **changes})


SPOILED = {
    "label too large": (lambda g: {"labels": g["labels"] + 1}, r"lie in 0\.\.4, got 1 to 5"),
    "label negative": (lambda g: {"labels": g["labels"] - 1}, r"lie in 0\.\.4, got -1"),
    "one-hot int64": (lambda g: {"labels": F.one_hot(g["labels"])}, "class indices"),
    "one column": (lambda g: {"labels": torch.rand(6, 1)}, "5 columns"),
    "a column too many": (lambda g: {"labels": torch.rand(6, 6)}, "5 columns"),
    "uint8 images": (lambda g: {"images": g["images"].byte()}, "floating point"),
    "double images": (lambda g: {"images": g["images"].double()}, "one dtype"),
    "bfloat16 weights": (
        lambda g: {k: g[k].bfloat16() for k in ("start", "target", "images")},
        "float32 or float64",
    ),
    "target in double": (lambda g: {"target": g["target"].double()}, "one shape, dtype"),
    "segment stands still": (lambda g: {"target": g["start"].clone()}, "start equals target"),
    "keep nothing": (lambda g: {"keep": torch.zeros(len(g["start"])) > 0}, "keeps nothing"),
    "keep beyond": (lambda g: {"keep": torch.tensor([10**7])}, "indices must lie in"),
    "keep negative": (lambda g: {"keep": torch.tensor([-1])}, "indices must lie in"),
    "half a step": (lambda g: {"steps": 2.5}, "steps must be a whole number"),
    "half a batch": (lambda g: {"batch_size": 2.5}, "batch_size must be a whole number"),
    "memory in words": (lambda g: {"memory": "1G"}, "memory must be"),
    "negative memory": (lambda g: {"memory": -1}, "memory must be"),
    "augment in words": (lambda g: {"augment": "color_crop"}, "augment must be"),
    "precision": (lambda g: {"precision": "fp16"}, "precision must be"),
    "no images": (lambda g: {"images": g["images"][:0], "labels": g["labels"][:0]}, "at least one"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_misuse_of_the_matcher_is_refused_in_a_sentence(net, given, case):
    spoil, words = SPOILED[case]
    assert match(net, given).isfinite()
    with pytest.raises(ValueError, match=words):
        match(net, given, **spoil(given))


def test_start_and_target_may_be_dicts(net, given):
    sizes = [(name, p.shape) for name, p in net.named_parameters()]

    def as_dict(flat):
        parts = flat.split([shape.numel() for _, shape in sizes])
        return {n: part.view(shape) for (n, shape), part in zip(sizes, parts, strict=True)}

    indices = [torch.arange(6)] * 2
    flat = match(net, given, indices=indices)
    dicts = {key: as_dict(given[key]) for key in ("start", "target")}
    assert torch.equal(match(net, given, indices=indices, **dicts), flat)
    turned = {**dicts["start"], "classifier.weight": dicts["start"]["classifier.weight"].T}
    with pytest.raises(ValueError, match="classifier.weight"):
        match(net, given, start=turned, target=dicts["target"])


def test_keep_may_be_a_list(net, given):
    indices = [torch.arange(6)] * 2
    lists = match(net, given, keep=[3, 4, 500], indices=indices)
    assert torch.equal(lists, match(net, given, keep=torch.tensor([3, 4, 500]), indices=indices))


@pytest.mark.parametrize("zero", [False, True])
def test_a_forward_of_its_own_is_found_whatever_the_weights(zero):
    odd = Scaled(SHAPE, CLASSES, depth=2, width=8)
    if zero:
        nn.init.zeros_(odd.classifier.weight)
        nn.init.zeros_(odd.classifier.bias)
    assert not isinstance(make_student(odd, SHAPE), ConvNetStudent)


def test_a_student_on_the_meta_device_is_recognised():
    with torch.device("meta"):
        net = ConvNet(SHAPE, CLASSES, depth=2, width=8)
    assert isinstance(make_student(net, SHAPE), ConvNetStudent)


def test_a_student_that_draws_numbers_is_refused_until_it_evaluates():
    net = Dropping()
    with pytest.raises(ValueError, match="must not draw numbers"):
        make_student(net, SHAPE)
    make_student(net.eval(), SHAPE)
    with pytest.raises(ValueError, match="must not draw numbers"):
        make_student(net.train(), SHAPE)


def test_a_student_that_cannot_take_the_images_says_so():
    with pytest.raises(ValueError, match=r"batch of shape \[2, 3, 9, 9\]"):
        make_student(Dropping().eval(), (3, 9, 9))


def test_inference_mode_gives_the_loss_and_spoils_nothing(net, given):
    matcher = fastmtt.TrajectoryMatcher(net, steps=2)
    arguments = [given[name] for name in ("start", "target", "images", "labels", "lr")]
    indices = [torch.arange(6)] * 2
    with torch.inference_mode():
        quiet = matcher(*arguments, indices=indices)
    arguments[2] = arguments[2].clone().requires_grad_()
    loss = matcher(*arguments, indices=indices)
    loss.backward()
    assert torch.equal(quiet, loss.detach()) and arguments[2].grad.norm() > 0


def test_autocast_changes_nothing(net, given):
    indices = [torch.arange(6)] * 2
    found = []
    for enabled in (False, True):
        images = given["images"].clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            match(net, given, images=images, indices=indices).backward()
        found.append(images.grad)
    assert torch.equal(*found)


def test_a_second_backward_needs_retain_graph(net, given):
    images = given["images"].clone().requires_grad_()
    loss = match(net, given, images=images)
    loss.backward(retain_graph=True)
    first = images.grad.clone()
    loss.backward()
    assert torch.equal(images.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_unroll_takes_any_iterable_and_refuses_empty_batches(net, given):
    batches = [(given["images"], given["labels"])] * 2
    listed = fastmtt.unroll_sgd(net, given["start"], batches, 0.1)
    assert torch.equal(fastmtt.unroll_sgd(net, given["start"], iter(batches), 0.1), listed)
    with pytest.raises(ValueError, match="at least one image"):
        fastmtt.unroll_sgd(net, given["start"], [(torch.ones(0, *SHAPE), torch.ones(0))], 0.1)
