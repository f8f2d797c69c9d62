"""PDD's stages: golden runs of two stages, experts that go on, checkpoints, the commands."""

import json

import in_memory
import pytest
import straight_line
import test_golden
import torch
from compare import assert_close
from test_commands import failing
from tolerances import CONTINUED_EXPERT_32, META_GRADIENT

from fastmtt import distill, draws, evaluate, evaluation, stages
from fastmtt.data import load
from fastmtt.distillation import Distillation
from fastmtt.errors import FastmttError
from fastmtt.evaluation import Scores
from fastmtt.experts.store import TrajectoryStore
from fastmtt.protocol import Protocol
from fastmtt.staged_evaluation import evaluate_stages
from fastmtt.stages import Stage
from fastmtt.student import make_student
from fastmtt.student.zoo import make_network
from fastmtt.synthetic import Synthetic, load_synthetic
from fastmtt.training import Examples, Recipe, train

dataset = test_golden.dataset
EPOCHS = 3  # of an evaluation and a transition: 4 of them, the rate drops behind the third


def orders(seed, what, member, epochs, count):
    return [
        torch.from_numpy(draws.stream(seed, f"{what} shuffle", member, epoch).permutation(count))
        for epoch in range(epochs)
    ]


def continued(dataset, network, theta, distilled, rate, seed, member, epochs, batches):
    """An expert of a later stage: trained on the set, then on real images, by plain loops."""
    on_set = orders(seed, "transition", member, EPOCHS + 1, len(distilled.images))
    begun = straight_line.sgd(
        network,
        theta,
        distilled.images,
        distilled.labels,
        float(distilled.lr),
        on_set,
        batches[0],
        momentum=0.9,
        decay=5e-4,
        drop_after=EPOCHS // 2 + 1,
    )[-1]
    on_real = orders(seed, "expert", member, epochs, len(dataset.train_labels))
    images, labels = dataset.train_images.to(theta), dataset.train_labels
    return torch.stack(
        [begun, *straight_line.sgd(network, begun, images, labels, rate, on_real, batches[1])]
    )


@pytest.mark.parametrize("model", test_golden.MODELS)
@pytest.mark.parametrize("method", ["mtt", "pad"])
def test_two_stages(tmp_path, dataset, model, method, monkeypatch):
    """The second stage matches experts continued from the first one's set; PAD's masks too."""
    scores = Scores(torch.tensor([0.5]), None)
    monkeypatch.setattr(evaluation, "evaluate_distilled", lambda *_, **__: scores)
    mask = dict(keep="depth", depth_ratio=0.4, labels="hard", zca=False, rho_max=None)
    keys = dict(num_intervals=2, model=model, epoch_eval_train=EPOCHS, batch_train=4)
    keys |= dict(pix_init="real", threshold=None, Sequential_Generation=False)
    keys |= {} if method == "mtt" else mask
    first = test_golden.distilled(tmp_path / "1", method, dataset, **keys)
    config, network = first.config, in_memory.network_of(model)
    first.distil(first.store, first.run)
    union = first.set.detached()

    stage = Stage((union,))
    seed = stage.seed(config.seed)
    assert seed != config.seed
    protocol, student = first.protocol, make_student(network, in_memory.SHAPE)
    start = stages.first_snapshots(first.store, first.experts, 2)
    assert torch.equal(start, torch.stack([rows[0] for rows in first.store.trajectories]))
    begun = stages.trained_on_set(student, start, union, protocol, stage, [0, 1])
    snapshots = [begun]
    recipe = Recipe(config.epochs_read, 7, 0.1)
    examples = Examples(dataset.train_images, dataset.train_labels)
    after = lambda _, weights, __: snapshots.append(weights)  # noqa: E731
    train(
        *(student, begun, examples, recipe),
        **dict(seed=seed, what="expert", members=[0, 1], after_epoch=after),
    )
    experts = [*torch.stack(snapshots, 1)]
    for member, found in enumerate(experts):
        wanted = continued(
            *(dataset, network, start[member], union, 0.1, seed, member),
            *(config.epochs_read, (4, 7)),
        )
        assert_close(found, wanted, META_GRADIENT, f"expert {member}")
        assert (found[0] - start[member]).norm() > 0.1, "it begins elsewhere"

    second = in_memory.began(tmp_path / "2", config, dataset, experts, stage)
    second.begin()
    assert torch.equal(second.set.images[:6], union.images) and len(second.set.images) == 12
    assert second.lr == config.lr_teacher != float(union.lr), "its rate begins anew"
    assert (second.set.images[6:] - union.images).norm() > 1
    given = test_golden.given_to(second)
    keep = test_golden.deeper if method == "pad" else lambda squares: squares == squares
    program = straight_line.mtt(given, config, frozen=6, keep=keep)
    states, records = second.run.states, second.run.records
    test_golden.compare(second, given, program)
    assert [tensors["images"][:6].equal(union.images) for tensors, _ in states] == [True] * 3
    assert [record["iteration"] for record in records] == [3, 4, 5], "counted through the run"
    assert {values["stage"] for _, values in states} == {1}


def test_a_checkpoint_knows_its_stage(tmp_path, dataset):
    keys = dict(num_intervals=3, model="ConvNetD1W8")
    run = test_golden.distilled(tmp_path, "mtt", dataset, **keys)
    tensors, values = run.state()
    assert values["stage"] == 0
    with pytest.raises(FastmttError, match="the checkpoint is of stage 2, the run of 0"):
        run.restore((tensors, {**values, "stage": 2}))
    old = {name: value for name, value in values.items() if name != "stage"}
    run.restore((tensors, old))  # made before there were stages


SMALL = "--dataset digits --model ConvNetD1W8 --threads 1 --dsa false --batch_train 16"
FLAGS = (
    f"{SMALL} --method pdd --num_intervals 2 --num_experts 2 --expert_epochs 1 --max_start_epoch 2 "
    f"--syn_steps 4 --Iteration 2 --eval_it 2 --num_eval 2 --epoch_eval_train {EPOCHS} "
    "--lr_img 10 --lr_teacher 0.05 --run_name run"
)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """The folder of a run of two stages."""
    folder = tmp_path_factory.mktemp("staged")
    distill.main(f"{FLAGS} --save_path {folder} --buffer_path {folder}/experts".split())
    return folder / "digits" / "1" / "ConvNetD1W8" / "run"


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_goes_through_its_stages(staged):
    one, two = (load_synthetic(stages.stage_file(staged, number))[0] for number in (0, 1))
    last, meta = load_synthetic(staged / "distilled_last.safetensors")
    assert len(one.images) == 10 and len(two.images) == len(last.images) == 20
    assert torch.equal(two.images[:10], one.images) and torch.equal(last.images[:10], one.images)
    assert not torch.equal(two.images[10:], last.images[10:]) and meta["iteration"] == 6
    assert two.labels.tolist() == [*range(10)] * 2
    losses = [record["iteration"] for record in records(staged) if "loss" in record]
    assert losses == [0, 1, 2, 3, 4, 5]
    assert json.loads((staged / "summary.json").read_text())["iterations"] == 6


def test_a_stage_that_ended_holds_no_tapes(staged, tmp_path, monkeypatch):
    begun = []

    class Watched(Distillation):
        def __init__(self, *given):
            begun.append(self)
            super().__init__(*given)

        def distil(self, *given):
            assert all(run.objective.matcher._last is None for run in begun)
            super().distil(*given)
            assert self.objective.matcher._last is not None

    monkeypatch.setattr(distill, "Distillation", Watched)
    experts = staged.parents[3] / "experts"
    distill.main(f"{FLAGS} --save_path {tmp_path} --buffer_path {experts}".split())
    assert len(begun) == 2
    again = tmp_path / "digits" / "1" / "ConvNetD1W8" / "run" / "distilled_last.safetensors"
    assert again.read_bytes() == (staged / "distilled_last.safetensors").read_bytes()


def test_the_second_stages_experts_go_on_where_the_first_ones_set_ends(staged):
    """Files of experts against plain loops in float64."""
    first = TrajectoryStore(staged.parents[3] / "experts" / "digits" / "ConvNetD1W8")
    second = TrajectoryStore(stages.experts_folder(staged, 1))
    assert second.indices() == [0, 1] and second.length(0) == 3
    union, _ = load_synthetic(stages.stage_file(staged, 0))
    union = Synthetic(union.images.double(), union.labels, union.lr.double())
    digits = load("digits", "data", progress=False)
    network = make_network("ConvNetD1W8", image_shape=(1, 8, 8), classes=10).double()
    for expert in (0, 1):
        start, _ = first.segment(expert, 0, 1)
        seed = Stage((union,)).seed(0)
        wanted = continued(
            *(digits, network, start.double(), union, 0.01, seed, expert),
            *(2, (10, 256)),
        )
        for snapshot in range(3):
            found = second.segment(expert, snapshot, 0 if snapshot else 1)[0]
            assert_close(found, wanted[snapshot], CONTINUED_EXPERT_32)


def test_networks_are_trained_stage_by_stage(staged, capsys):
    evaluate.main([str(staged), "--num_eval", "2", "--epoch_eval_train", "4"])
    found = records(staged)[-1]
    assert found["evaluated"] == "distilled set (2 stages)" and found["accuracy"] > 20
    evaluate.main(
        [str(staged), "--num_eval", "2", "--epoch_eval_train", "4", "--stage_init", "released"]
    )
    released = records(staged)[-1]
    assert (found["accuracy"], found["accuracy_std"]) != (
        *(released["accuracy"], released["accuracy_std"]),
    )
    evaluate.main([str(staged / "distilled_last.safetensors"), "--epoch_eval_train", "1"])
    assert records(staged)[-1]["evaluated"] == "distilled set (last)"


def test_released_weights_are_of_the_experts_network(staged, capsys):
    flags = f"{staged} --stage_init released --eval_mode other --model_eval ConvNetD1W6"
    assert "stage_init released begins with weights of ConvNetD1W8" in failing(
        capsys, evaluate.main, flags
    )
    flags = f"{staged / 'distilled_best.safetensors'} --stage_init released"
    assert "networks are trained on one set, not stage by stage" in failing(
        capsys, evaluate.main, flags
    )


def test_a_staged_run_that_goes_on_has_as_many_iterations(staged, capsys):
    where = f"--save_path {staged.parents[2]} --buffer_path {staged.parents[3]}/experts"
    flags = f"{FLAGS.replace('--Iteration 2', '--Iteration 4')} {where} --resume"
    flags = flags.replace(str(staged.parents[2]), str(staged.parents[2].parent))
    assert "Iteration was 2, now it is 4" in failing(capsys, distill.main, flags)


def test_stages_are_evaluated_by_the_published_schedule(dataset, monkeypatch):
    """Weights and momentum go on from stage to stage, each at its own rate, against plain loops."""
    ended = {}

    def keep(theta, *_):
        ended["theta"] = theta
        return Scores(torch.zeros(len(theta)), None)

    monkeypatch.setattr(evaluation, "_scores", keep)
    network, labels = in_memory.network_of("ConvNetD2W8"), torch.tensor([0, 1, 2, 0, 1, 2])
    images = dataset.train_images[:6]
    sets = [
        Synthetic(images[:3], labels[:3], torch.tensor(0.1)),
        Synthetic(images, labels, torch.tensor(0.03)),
    ]
    start = torch.cat([p.detach().flatten() for p in network.parameters()]).repeat(2, 1)
    protocol = Protocol("ConvNetD2W8", 2, EPOCHS, 4, None, seed=3)
    evaluate_stages(dataset, sets, protocol, start=start)
    for member, found in enumerate(ended["theta"]):
        theta, velocity = start[member], 0.0
        for what, one in zip(("evaluation", "evaluation stage 1"), sets, strict=True):
            count = len(one.images)
            for epoch, order in enumerate(orders(3, what, member, EPOCHS + 1, count)):
                lr = float(one.lr) * (0.1 if epoch > EPOCHS // 2 + 1 else 1)
                for begin in range(0, count, 4):
                    rows, at = order[begin : begin + 4], straight_line.leaf(theta)
                    outputs = straight_line.logits(network, at, one.images[rows])
                    loss = straight_line.cross_entropy(outputs, one.labels[rows])
                    gradient = torch.autograd.grad(loss, at)[0] + 5e-4 * theta
                    velocity = 0.9 * velocity + gradient
                    theta = theta - lr * velocity
        assert_close(found, theta, META_GRADIENT)
