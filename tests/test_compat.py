"""ReparamModule in the field's own loop: autograd.grad(create_graph=True) through our blocks."""

from collections import Counter

import naive
import networks
import pytest
import torch
import torch.nn.functional as F
from compare import assert_all_close, assert_close
from problems import Problem
from tolerances import META_GRADIENT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmtt.compat import ReparamModule
from fastmtt.ops import backends, differentiable
from fastmtt.student import find_structure
from fastmtt.student.zoo import ConvNet


def convnet(depth=2):
    return lambda: ConvNet((3, 16, 16), 3, depth=depth, width=4)


def the_fields_loop(p, given):
    """The published programs' iteration, with their names for things."""
    student_net = ReparamModule(p.module)
    student_net.train()
    student_params = [given["start"][0]]
    for indices in p.draws.indices:
        x, this_y = given["images"][indices[0]], given["labels"][indices[0]]
        x = student_net(x, flat_param=student_params[-1])
        ce_loss = F.cross_entropy(x, this_y)
        grad = torch.autograd.grad(ce_loss, student_params[-1], create_graph=True)[0]
        student_params.append(student_params[-1] - given["lr"] * grad)
    param_loss = F.mse_loss(student_params[-1], given["target"][0], reduction="sum")
    return param_loss / F.mse_loss(given["start"][0], given["target"][0], reduction="sum")


CASES = {
    "depth 1": convnet(1),
    "depth 3": convnet(3),
    "foreign ConvNet": lambda: networks.PlainConvNet(2, 4, 16),
    "AlexNet": networks.AlexNet,
}


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("case", CASES)
def test_unrolled_gradients(case, labels):
    p = Problem(CASES[case], steps=4, batch=4, labels=labels)
    given = p.given()
    loss = the_fields_loop(p, given)
    want_loss, want = p.naive()
    assert_close(loss, want_loss, META_GRADIENT)
    assert_all_close(naive.gradients(loss, given), want, META_GRADIENT)


def test_convnets_run_on_our_blocks(monkeypatch):
    calls = []
    block = differentiable.conv_block
    monkeypatch.setattr(differentiable, "conv_block", lambda *u: calls.append(1) or block(*u))
    ReparamModule(convnet(3)())(torch.zeros(2, 3, 16, 16))
    assert len(calls) == 3
    ReparamModule(networks.AlexNet())(torch.zeros(2, 3, 16, 16))
    assert len(calls) == 3


class Counted(TorchDispatchMode):
    """How often each op reached its kernel."""

    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_the_naive_gradients_come_from_the_compiled_blocks(extension):
    p = Problem(convnet(2), steps=4, batch=4)
    given = p.given()
    find_structure(p.module, p.shape)  # runs the module's own forward, once
    with Counted() as counted:
        loss = the_fields_loop(p, given)
        got = naive.gradients(loss, given)
    want_loss, want = p.naive()
    assert_close(loss, want_loss, META_GRADIENT)
    assert_all_close(got, want, META_GRADIENT)
    blocks = 2 * 4  # depth times steps
    for op in ("conv_block", "conv_block_backward", "conv_block_jvp", "conv_block_backward_jvp"):
        assert backends.compiled(op) and counted.ops[f"fastmtt::{op}"] >= blocks, op
    assert not [op for op in counted.ops if "convolution" in op or "norm" in op.split("::")[1]]


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_held_weights(case):
    module, x = networks.seeded(CASES[case]), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    net = ReparamModule(module)
    want = module(x)
    assert_close(net(x), want, META_GRADIENT)
    assert_close(net(x, flat_param=net.flat_param[None]), want, META_GRADIENT)  # squeezed
    assert [name for name, _ in net.named_parameters()] == ["flat_param"]
    assert torch.equal(net.flat_param, naive.flat_weights(module))
    assert net.param_numel == net.flat_param.numel() == sum(p.numel() for p in module.parameters())
    net(x).square().sum().backward()
    module(x).square().sum().backward()
    assert_close(
        net.flat_param.grad,
        torch.cat([p.grad.flatten() for p in module.parameters()]),
        META_GRADIENT,
    )


def test_other_weights_of_the_wrong_number():
    net = ReparamModule(convnet()())
    with pytest.raises(ValueError, match=r"flat_param must hold \d+ values, got 3"):
        net(torch.zeros(1, 3, 16, 16), flat_param=torch.zeros(3))


def test_mode_dtype_and_buffers_reach_the_module_inside():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    net = ReparamModule(module)
    x = torch.randn(8, 1, 2, 2, dtype=torch.float64)
    net.double().eval()
    assert not module.training and module[2].running_mean.dtype == torch.float64
    assert torch.equal(net(x), module(x))
    mean = torch.full((4,), 3.0, dtype=torch.float64)
    assert not torch.equal(net(x, buffers={"2.running_mean": mean}), net(x))
    assert torch.equal(module[2].running_mean, torch.zeros(4, dtype=torch.float64))
    net.train()
    assert module.training


def test_mixed_dtypes_take_torchs_own_path():
    net = ReparamModule(convnet()())
    with pytest.raises(RuntimeError, match="dtype|type"):
        net(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
