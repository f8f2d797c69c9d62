"""unroll_sgd: forms of its arguments, gradients through all of them, and what it refuses."""

import contextvars

import naive
import networks
import pytest
import torch
from compare import assert_all_close, assert_close
from tolerances import META_GRADIENT

from fastmtt import FastmttError, unroll_sgd
from fastmtt.ops import backends
from fastmtt.student.zoo import ConvNet

STEPS = 4


def convnet():
    return ConvNet((3, 8, 9), 3, depth=2, width=4)


def alexnet():
    return networks.AlexNet()


def leaves(make, students=None, soft=True):
    """A module, and theta, lr and batches that require grad; with an axis of students if asked."""
    module = networks.seeded(make)
    size = (3, 8, 9) if make is convnet else (3, 16, 16)
    lead = () if students is None else (students,)
    random = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    base = naive.flat_weights(module)
    given = {"theta": base + 0.1 * normal(*lead, len(base)), "lr": 0.05 + 0.01 * normal(STEPS)}
    for t in range(STEPS):
        given[f"x{t}"] = normal(*lead, 2 + t, *size)  # every step has its own batch size
        given[f"y{t}"] = normal(*lead, 2 + t, 3).softmax(-1) if soft else None
    if not soft:
        given |= {f"y{t}": torch.randint(3, (*lead, 2 + t), generator=random) for t in range(STEPS)}
    return module, {
        name: t.requires_grad_() if t.is_floating_point() else t for name, t in given.items()
    }


def batches(given):
    return [(given[f"x{t}"], given[f"y{t}"]) for t in range(STEPS)]


def weigh(thetas):
    """A nonlinear number of all weights that come out."""
    return sum((k + 1) * (theta.sin() * theta).sum() for k, theta in enumerate(thetas))


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("make", [convnet, alexnet])
def test_gradients_of_one_student(make, soft):
    module, given = leaves(make, soft=soft)
    got = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    want = naive.train(module, given["theta"], batches(given), given["lr"])[-1]
    assert_close(got, want, META_GRADIENT)
    assert_all_close(
        naive.gradients(weigh([got]), given), naive.gradients(weigh([want]), given), META_GRADIENT
    )


@pytest.mark.parametrize("make", [convnet, alexnet])
def test_gradients_of_several_students(make):
    module, given = leaves(make, students=3)
    got = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    ends = []
    for s in range(3):
        own = [(x[s], y[s]) for x, y in batches(given)]
        ends.append(naive.train(module, given["theta"][s], own, given["lr"])[-1])
    want = torch.stack(ends)
    assert_close(got, want, META_GRADIENT)
    assert_all_close(
        naive.gradients(weigh(got), given), naive.gradients(weigh(want), given), META_GRADIENT
    )


@pytest.mark.parametrize("at", [[0], [2], [0, 1, 4], [3, 3, 1], []])
@pytest.mark.parametrize("make", [convnet, alexnet])
def test_weights_on_the_way(make, at):
    module, given = leaves(make)
    got = unroll_sgd(module, given["theta"], batches(given), given["lr"], at=at)
    thetas = naive.train(module, given["theta"], batches(given), given["lr"])
    assert len(got) == len(at)
    if not at:
        return
    want = [thetas[k] for k in at]
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, META_GRADIENT)
    found = torch.autograd.grad(
        weigh(got), list(given.values()), materialize_grads=True, allow_unused=True
    )
    truth = torch.autograd.grad(
        weigh(want), list(given.values()), materialize_grads=True, allow_unused=True
    )
    for name, f, t in zip(given, found, truth, strict=True):
        late = name[0] in "xy" and int(name[1]) >= max(at)
        if late or (name == "lr" and max(at) == 0):
            assert f.abs().sum() == t.abs().sum() == 0, name
        else:
            assert_close(f, t, META_GRADIENT, name)


@pytest.mark.parametrize("k", [1, 2])
def test_truncated_with_weights_on_the_way(k):
    module, given = leaves(convnet)
    options = dict(at=[1, 3, 4], gradient=("truncated", k))
    got = unroll_sgd(module, given["theta"], batches(given), given["lr"], **options)
    thetas = naive.train(module, given["theta"], batches(given), given["lr"], first=STEPS - k)
    want = [thetas[t] for t in options["at"]]
    names = ["theta", "lr", *[f"{n}{t}" for t in range(STEPS - k, STEPS) for n in "xy"]]
    given = {name: given[name] for name in names}
    assert_all_close(
        naive.gradients(weigh(got), given), naive.gradients(weigh(want), given), META_GRADIENT
    )


def test_tesla_drops_what_passes_through_the_weights():
    module, given = leaves(convnet)
    got = unroll_sgd(module, given["theta"], batches(given), given["lr"], gradient="tesla")
    theta = given["theta"]
    for t, (x, y) in enumerate(batches(given)):  # each gradient at weights that are constants
        held = theta.detach().requires_grad_()
        theta = theta - given["lr"][t] * naive.step_gradient(module, held, x, y)
    assert_all_close(
        naive.gradients(weigh([got]), given), naive.gradients(weigh([theta]), given), META_GRADIENT
    )


def test_a_dict_goes_in_and_comes_out():
    module, given = leaves(convnet)
    names = [name for name, _ in module.named_parameters()]
    flat = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    sizes = [p.numel() for p in module.parameters()]
    parts = zip(names, given["theta"].split(sizes), module.parameters(), strict=True)
    theta = {name: part.view_as(p) for name, part, p in parts}
    backwards = dict(reversed(theta.items()))  # the names decide, not the order
    for start in (theta, backwards):
        out = unroll_sgd(module, start, batches(given), given["lr"])
        assert list(out) == list(start)
        assert all(out[name].shape == theta[name].shape for name in names)
        assert torch.equal(torch.cat([out[name].flatten() for name in names]), flat)
        grad = torch.autograd.grad(weigh([out[names[0]]]), given["theta"])[0]
        want = torch.autograd.grad(weigh([flat[: sizes[0]]]), given["theta"], retain_graph=True)[0]
        assert_close(grad, want, META_GRADIENT)


def test_batches_of_a_decoder():
    module, given = leaves(convnet)
    code = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    basis = torch.stack([given["x3"].detach()[0]] * 5) * torch.arange(5.0)[:, None, None, None]
    rows = [
        (torch.einsum("k,kchw->chw", code, basis)[None].tanh(), torch.tensor([t % 3]))
        for t in range(3)
    ]
    got = unroll_sgd(module, given["theta"], rows, 0.1)
    want = naive.train(module, given["theta"], rows, torch.tensor(0.1, dtype=torch.float64))[-1]
    assert_close(
        torch.autograd.grad(weigh([got]), code, retain_graph=True)[0],
        torch.autograd.grad(weigh([want]), code)[0],
        META_GRADIENT,
    )


def test_scalar_learning_rate_and_memory():
    module, given = leaves(convnet)
    given["lr"] = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    exact = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    want = naive.train(module, given["theta"], batches(given), given["lr"])[-1]
    gradients = naive.gradients(weigh([exact]), given)
    assert_all_close(gradients, naive.gradients(weigh([want]), given), META_GRADIENT)
    kept = unroll_sgd(module, given["theta"], batches(given), given["lr"], memory=10**8)
    found = naive.gradients(weigh([kept]), given)
    assert all(torch.equal(found[name], gradients[name]) for name in given)


@pytest.mark.parametrize("make", [convnet, alexnet])
def test_results_are_the_callers_own(make):
    module, given = leaves(make)
    arguments = module, given["theta"], batches(given), given["lr"]
    with torch.no_grad():
        out = unroll_sgd(*arguments)
        assert out.untyped_storage().nbytes() == out.numel() * 8  # the steps are not kept alive
    first, last = unroll_sgd(*arguments, at=[1, 4])
    want = torch.autograd.grad((first * 3 + last).sum(), given["theta"])[0]
    first, last = unroll_sgd(*arguments, at=[1, 4])
    first.mul_(3.0)
    got = torch.autograd.grad((first + last).sum(), given["theta"])[0]
    assert_close(got, want, META_GRADIENT)


def test_create_graph_is_refused():
    module, given = leaves(convnet)
    out = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    with pytest.raises(RuntimeError, match="create_graph=True.*compat.ReparamModule"):
        torch.autograd.grad(out.sum(), given["theta"], create_graph=True)


@pytest.mark.parametrize("name", ["lr", "x1", "y2"])
def test_an_input_changed_in_place_is_noticed(name):
    module, given = leaves(convnet)
    out = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    with torch.no_grad():
        given[name].mul_(2.0)
    with pytest.raises(
        RuntimeError, match="lr, were changed in place between.*change them after backward"
    ):
        out.sum().backward()


def first_batch(change):
    return lambda g: g | dict(zip(("x0", "y0"), change(g["x0"], g["y0"]), strict=True))


REFUSED = [
    (lambda g: g | {"theta": g["theta"][1:]}, {}, r"theta must be .*\[\d+\].*the student has"),
    (lambda g: g | {"theta": g["theta"].long()}, {}, "use one dtype"),
    (lambda g: g | {"lr": g["lr"][1:]}, {}, r"lr must be a scalar or one a step \[4\]"),
    (
        first_batch(lambda x, y: (x, y[1:])),
        {},
        r"batches\[0\] must be images \[n,...\] with labels \[n\]",
    ),
    (
        first_batch(lambda x, y: (x.float(), y)),
        {},
        r"images of batches\[0\] are torch.float32, theta",
    ),
    (
        first_batch(lambda x, y: (x, y.float())),
        {},
        r"labels of batches\[0\] are torch.float32, theta",
    ),
    (first_batch(lambda x, y: (x, y.argmax(-1).int())), {}, "must be int64 or floating point"),
    (dict, {"at": [5]}, r"at must lie in 0..4, got \[5\]"),
    (dict, {"at": [-1]}, "at must lie in 0..4"),
    (dict, {"gradient": "first"}, "gradient must be 'exact', 'tesla'"),
    (dict, {"precision": "bf16"}, "weights are torch.float64: give float32 weights"),
    (dict, {"precision": "tf32"}, "'tf32' is a GPU's way .*, but the weights are torch.float64"),
]


@pytest.mark.parametrize(("change", "options", "message"), REFUSED)
def test_what_does_not_fit(change, options, message):
    module, given = leaves(convnet)
    given = change(given)
    with pytest.raises(ValueError, match=message):
        unroll_sgd(module, given["theta"], batches(given), given["lr"], **options)


def test_further_refusals():
    module, given = leaves(convnet, students=2)
    theta, rows, lr = given["theta"], batches(given), given["lr"]
    with pytest.raises(
        ValueError, match=r"must be images \[2,n,...\] with labels \[2,n\] or \[2,n,K\]"
    ):
        unroll_sgd(module, theta, [(x[0], y[0]) for x, y in rows], lr)
    with pytest.raises(ValueError, match="batches is empty"):
        unroll_sgd(module, theta, [], lr)
    with pytest.raises(ValueError, match="missing .*features.0.weight.*unknown .'w'."):
        unroll_sgd(module, {"w": theta}, rows, lr)
    with pytest.raises(FastmttError, match="backend 'gpu' is not known"):
        unroll_sgd(module, theta, rows, lr, backend="gpu")


def test_a_backend_forced_around_the_call_serves_its_backward_too(monkeypatch):
    """Whose thread, on a GPU autograd's own, does not know it."""
    served = []
    serving = backends._serving
    monkeypatch.setattr(
        backends, "_serving", lambda op, args: served.append(serving(op, args)) or served[-1]
    )
    module, given = leaves(convnet)
    with backends.use("reference"):
        end = unroll_sgd(module, given["theta"], batches(given), given["lr"])
    forward = len(served)
    contextvars.Context().run(end.sum().backward)
    assert set(served[forward:]) == {"reference"}
