"""docs/drop-in.md: every block of code runs where it says it goes and computes what it replaces."""

import importlib
import re
from argparse import Namespace
from pathlib import Path

import naive
import pytest
import torch
import torch.nn.functional as F
from compare import assert_close
from problems import Problem
from tolerances import META_GRADIENT
from torch import nn

import fastmtt
from fastmtt.student.zoo import ConvNet

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/drop-in.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
ARGS = Namespace(
    syn_steps=3, batch_syn=None, dsa_strategy="none", loss_ratio=0.3, depth_ratio=0.4, threshold=9.0
)


def code(section):
    return "\n".join(re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL))


class Loop:
    """A program's variables at the place of the call, on a problem in float64, whole batches."""

    def __init__(self, soft=False):
        self.problem = Problem(
            lambda: ConvNet((3, 8, 8), 3, depth=1, width=4),
            shape=(3, 8, 8),
            steps=ARGS.syn_steps,
            batch=None,
        )
        given = self.problem.given()
        net = self.problem.module
        sizes = [p.numel() for p in net.parameters()]
        labels = 3 * F.one_hot(given["labels"], 3).double()
        self.given = given | {"labels": labels.requires_grad_()} if soft else given
        self.names = {
            "torch": torch,
            "fastmtt": fastmtt,
            "args": ARGS,
            "student_net": net,
            "starting_params": given["start"][0].detach().split(sizes),
            "target_params": given["target"][0].detach().split(sizes),
            "start": given["start"][0].detach(),
            "target": given["target"][0].detach(),
            "image_syn": self.given["images"],
            "label_syn": self.given["labels"],
            "syn_lr": self.given["lr"],
            "masked": 2,
        }

    def run(self, section):
        exec(code(section), self.names)
        return self.names["grand_loss"]

    def naive(self, **options):
        """The loss by autograd, of the same variables."""
        given = dict(self.given)
        if given["labels"].is_floating_point():
            given["labels"] = given["labels"].softmax(-1)
        return naive.matching_loss(self.problem.module, given, self.problem.draws, **options)


@pytest.mark.parametrize("section", ["MTT", "DATM", "PAD", "PDD"])
def test_the_call_is_the_loop(section):
    loop = Loop(soft=section in ("DATM", "PAD"))
    loss = loop.run(section)
    masks = {"PAD": lambda squares: squares.argsort()[int(0.3 * len(squares)) :]}
    want_loss = loop.naive(keep=masks.get(section))
    wanted = [name for name in ("images", "labels", "lr") if loop.given[name].requires_grad]
    want = torch.autograd.grad(want_loss, [loop.given[name] for name in wanted])
    assert_close(loss, want_loss, META_GRADIENT)
    if section in ("MTT", "PAD"):
        loss.backward()
    for name, g in zip(wanted, want, strict=True):
        got = loop.given[name].grad
        if section == "PDD" and name == "images":
            assert not got[:2].any()
            got, g = got[2:], g[2:]
        assert_close(got, g, META_GRADIENT, name)


def test_pads_other_mask():
    loop = Loop(soft=True)
    exec(code("PAD").replace("keep=larger,  # or keep=deep", "keep=deep,"), loop.names)
    deep = torch.arange(loop.problem.size) >= int(0.4 * loop.problem.size)
    assert_close(loop.names["grand_loss"], loop.naive(keep=lambda squares: deep), META_GRADIENT)


def test_teslas_call_is_the_published_formula():
    loop = Loop()
    loop.run("TESLA")
    want = naive.tesla_gradients(loop.problem.module, loop.problem.given(), loop.problem.draws)
    assert_close(loop.given["images"].grad, want["images"], META_GRADIENT)
    assert_close(loop.given["lr"].grad, want["lr"], META_GRADIENT)


def test_the_decoders_call():
    loop = Loop()
    indices = [rows[0] for rows in loop.problem.draws.indices]
    decoder = nn.Sequential(nn.Linear(5, 192), nn.Tanh(), nn.Unflatten(1, (3, 8, 8))).double()
    codes = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    loop.names |= {"decoder": decoder, "codes": codes, "indices": indices}
    exec(code("Images from a decoder, batches of your own, other losses"), loop.names)
    loop.given["images"] = decoder(codes)
    (want,) = torch.autograd.grad(loop.naive(), codes)
    loop.names["grand_loss"].backward()
    assert_close(codes.grad, want, META_GRADIENT)


def test_the_import():
    exec(code("A loop that stays"), names := {})
    assert names["ReparamModule"] is fastmtt.compat.ReparamModule


def test_what_it_says_of_the_examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    common = importlib.import_module("common")
    told = re.findall(r"python (examples/\w+\.py) +# (\d+) lines deleted, (\d+) written", TEXT)
    assert len(told) == len(list((ROOT / "examples").glob("*.py"))) - 1  # one is shared
    for script, *lines in told:
        example = importlib.import_module(Path(script).stem)
        changed = common.changed_lines(example.naive, example.with_fastmtt)
        assert changed == tuple(map(int, lines))
