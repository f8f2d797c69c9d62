"""Predicted memory against the tensors that runs hold."""

from dataclasses import replace

import in_memory
import pytest
import torch

from fastmtt import FastmttError, TrajectoryMatcher, batches, budget, buffer, distill
from fastmtt.batches import Plan
from fastmtt.config import parse
from fastmtt.distillation import Distillation
from fastmtt.ops import backends
from fastmtt.student import Room, make_student
from fastmtt.student.zoo import make_network
from fastmtt.training import Examples, Recipe, Sharpness, accuracy, train
from fastmtt.trajectory_objective import tape_memory

SHAPE = (3, 16, 16)


def network():
    return make_network("ConvNetD2W16", image_shape=SHAPE, classes=3)


@pytest.fixture
def unpadded(monkeypatch):
    """Rows as a CPU has them; no scratch, and every block's outputs, as on a GPU."""
    monkeypatch.setattr("fastmtt.sweeps._ALIGNED", 1)
    monkeypatch.setattr("fastmtt.ops.backends.without_outputs", lambda *_: False)
    monkeypatch.setattr(Room, "scratch", lambda *_: torch.empty(0, dtype=torch.uint8))


def storage(t):
    return t.untyped_storage().nbytes()


@pytest.mark.parametrize("gradient", ["exact", ("truncated", 2)])
@pytest.mark.parametrize("memory", [None, 200_000, 10**8])
@pytest.mark.parametrize("segments", [1, 3])
def test_matching_holds_what_is_predicted(memory, segments, gradient, unpadded):
    plan, student = Plan(5, segments, 10, 4, SHAPE, None), make_student(network(), SHAPE)
    predicted = budget.matching(student, plan, memory, 3, soft=True, gradient=gradient)
    matcher = TrajectoryMatcher(network(), steps=5, batch_size=4, memory=memory, gradient=gradient)
    size = sum(p.numel() for p in network().parameters())
    images, labels = torch.randn(10, *SHAPE), torch.rand(10, 3).softmax(-1)
    images.requires_grad_()
    labels.requires_grad_()
    start = 0.1 * torch.randn(segments, size)
    draws = batches.draw(seed=0, **plan._asdict())
    matcher(start, start + 0.1, images, labels, torch.tensor(0.1), draws=draws).backward()
    it = matcher._last
    record = it.record
    held = [record.thetas, record.gradients, record.adjoint, record.hv, it.goal]
    sweeps = sum(map(storage, held)) + sum(tape.room.bytes for tape in record.tapes)
    sweeps += matcher._room.bytes
    around = storage(it.inputs.start) + storage(it.inputs.target) + storage(it.inputs.images)
    assert sweeps + around <= predicted
    # beside that: a plane for a kernel, a few vectors of weights, a step's and the set's images
    images_in_passing = 4 * 3 * 16 * 16 * (4 * segments * 4 + 4 * 10)
    plane = 4 * segments * 4 * 16 * 16 * 16
    assert predicted == sweeps + plane + 6 * 4 * segments * size + images_in_passing


def test_a_forecast_for_a_narrow_network_asks_no_backend():
    narrow = make_network("ConvNetD2W8", image_shape=SHAPE, classes=3)
    plan = Plan(5, 1, 10, 4, SHAPE, None)
    with backends.use("cpu"):
        assert budget.matching(make_student(narrow, SHAPE), plan, 10**8, 3, soft=False) > 0


@pytest.mark.parametrize("students", [1, 4])
def test_training_holds_what_is_predicted(students, unpadded):
    predicted = budget.training(make_student(network(), SHAPE), students, 300, 128, SHAPE)
    student = make_student(network(), SHAPE)
    examples = Examples(torch.randn(300, *SHAPE), torch.randint(3, (300,)))
    theta = 0.1 * torch.randn(students, student.size)
    recipe, members = Recipe(1, 128, 0.1, 0.9), range(students)
    trained = train(student, theta, examples, recipe, seed=0, what="x", members=members)
    trained_alone = student.room.bytes
    accuracy(student, trained, examples.images[:128], examples.labels[:128])
    plane = 4 * students * 128 * 16 * 16 * 16
    rest = 5 * storage(theta) + 4 * 3 * 16 * 16 * 3 * students * 128 + plane // 4
    assert trained_alone > 10**6
    assert predicted == trained_alone + rest


def test_the_main_settings_on_a_gpu():
    """By the sizes of the standard ConvNet; 128 channels of 32 x 32 are half a megabyte."""
    net = make_network("ConvNet", image_shape=(3, 32, 32), classes=10)
    plan = Plan(80, 1, 100, 100, (3, 32, 32), None)
    taken = budget.matching(make_student(net, (3, 32, 32)), plan, None, 10, soft=False)
    weights = 161 * 4 * 320_032  # padded to 128 bytes
    planes = 100 * 2**19
    assert weights + 3 * planes < taken < weights + 8 * planes


def predict(memory=8, segments=4):
    return 10**9 * memory * segments


def test_advice_names_the_largest_that_fit():
    choices = {"memory": [4, 1], "segments": budget.halves(4)}
    told = budget.advice(20 * 10**9, predict, choices)
    assert "predicted 29.8 GiB of 18.6 GiB; would fit: memory 4 (14.9 GiB), segments 2" in told
    assert "nothing smaller of this run would fit" in budget.advice(10**9, predict, choices)


def test_want_of_memory_becomes_a_sentence(monkeypatch):
    monkeypatch.setattr(budget, "_total", lambda device: 20 * 10**9)
    with (
        pytest.raises(FastmttError, match="out of the GPU's memory: predicted 29.8 GiB"),
        budget.explained(torch.device("cpu"), predict, {}),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(("free", "kept"), [(8 * 10**8, 10**8), (2**40, 3 * 2**30)])
def test_a_cpu_keeps_what_it_can_spare_unless_told(free, kept, monkeypatch):
    monkeypatch.setattr("fastmtt.trajectory_objective.available", lambda: free)
    assert tape_memory(None, torch.device("cpu")) == kept
    assert tape_memory(0, torch.device("cpu")) == 0
    assert tape_memory(None, torch.device("meta")) == 0  # as any GPU's
    assert tape_memory(10**12, torch.device("cpu")) == 10**12


@pytest.mark.parametrize("gradient", ["exact", 2])
@pytest.mark.parametrize("memory", [0, 20_000, None])
def test_a_run_keeps_what_it_says(memory, gradient, tmp_path):
    """Of several segments, in batches that do not divide the set; nothing that no sweep reads."""
    keys = dict(model="ConvNetD2W16", batch_syn=4, segments=2, zca=False, memory=memory)
    keys["gradient"] = gradient
    dataset = in_memory.make_dataset(dtype=torch.float32)
    student = make_student(in_memory.network_of("ConvNetD2W16").float(), in_memory.SHAPE)
    trajectory = [0.1 * torch.randn(student.size) for _ in range(7)]
    run = in_memory.began(tmp_path, in_memory.configured("mtt", **keys), dataset, [trajectory])
    run.begin()
    run.step()
    objective = run.objective
    kept, most = budget.tapes(run.student, objective.plan, objective.memory, objective.gradient)
    bytes_of = [tape.room.bytes for tape in objective.matcher._last.record.tapes]
    assert sum(bytes_of) == kept
    assert (kept == 0, kept == most) == (memory == 0, memory is None)
    if memory is None:
        assert [size > 0 for size in bytes_of] == 3 * [gradient == "exact"] + 2 * [True]


def test_halves():
    assert budget.halves(10) == [5, 2, 1] and budget.halves(1) == [] and budget.halves(9, 3) == [4]


def test_on_a_cpu_what_is_available_is_told(capsys, monkeypatch):
    monkeypatch.setattr(budget, "available", lambda: 3 * 2**30)
    budget.announce({"matching": 2**30, "evaluation": 2**29}, torch.device("cpu"))
    assert "matching takes 1.0 GiB, 3.0 GiB are available" in capsys.readouterr().err
    budget.announce({}, torch.device("cpu"))
    assert not any(capsys.readouterr())


def peak_of(step):
    """The most bytes that a call's tensors took at a time, by the profiler's record of them."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    now, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("model", ["ConvNetD2W16", "ConvNetD3W32", "ConvNetD2W16MP"])
def test_matching_gradients_takes_what_is_predicted(model, tmp_path, monkeypatch):
    """A first iteration on a CPU, with all that its networks keep; at most half too much is said.

    The compiled student, and one in plain torch, which a maximum makes of it.
    """
    monkeypatch.setattr(in_memory, "SHAPE", (3, 32, 32))
    keys = dict(model=model, factor=2, inner_loop=2, batch_real=14, n_data=14, dsa=True, zca=False)
    config, dataset = (
        in_memory.configured("idc", **keys),
        in_memory.make_dataset(dtype=torch.float32),
    )
    run = in_memory.began(tmp_path, config, dataset, [])
    run.begin()
    sizes, device = run.objective.sizes, torch.device("cpu")
    predicted = budget.condensing(distill._unused(run), sizes, device)
    measured = peak_of(run.step)
    assert measured <= predicted <= 1.5 * measured, (measured, predicted)


def test_gradient_matching_says_what_would_fit(tmp_path, monkeypatch, capsys):
    keys = dict(model="ConvNetD1W8", factor=2, batch_real=12, zca=False)
    run = Distillation(
        in_memory.configured("idc", **keys), in_memory.make_dataset(dtype=torch.float32)
    )
    with distill._within_memory(run):
        assert "predicted: evaluation takes 0.0 GiB" in capsys.readouterr().err
    run.dataset = nowhere(run.dataset)
    monkeypatch.setattr(budget, "_total", lambda device: 10**9)
    within = distill._within_memory(run)
    with pytest.raises(FastmttError, match=r"would fit: batch_real \d"), within:
        raise torch.OutOfMemoryError("CUDA out of memory")


def nowhere(dataset):
    """A data set on a device that is no CPU."""
    return replace(dataset, train_images=dataset.train_images.to("meta"))


@pytest.mark.parametrize(
    ("keys", "would"),
    [
        (dict(segments=8), r"would fit: segments \d.*batch_syn \d"),
        (dict(ipc=4), r"would fit: batch_syn \d"),
    ],
)
def test_a_distillation_says_what_would_fit(keys, would, tmp_path, monkeypatch):
    config = in_memory.configured("mtt", model="ConvNetD1W8", **keys)
    run = Distillation(config, in_memory.make_dataset(dtype=torch.float32))
    run.dataset = nowhere(run.dataset)
    monkeypatch.setattr(budget, "_total", lambda device: 10**9)
    with pytest.raises(FastmttError, match=would), distill._within_memory(run):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_experts_say_what_would_fit(monkeypatch):
    config = parse("buffer", ["--model", "ConvNetD1W8", "--batch_train", "32"])
    dataset = nowhere(in_memory.make_dataset(dtype=torch.float32))
    recipe = Recipe(1, 32, 0.1, sharpness=Sharpness(0.1, 0.4))
    monkeypatch.setattr(budget, "_total", lambda device: 10**9)
    within = buffer._within_memory(config, dataset, recipe, 8)
    with pytest.raises(FastmttError, match=r"experts_at_once 4 .*"), within:
        raise torch.OutOfMemoryError("CUDA out of memory")
