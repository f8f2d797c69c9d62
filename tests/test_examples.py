"""The examples: both forms of each loop compute the same, by the precision rule, in few lines."""

import importlib
import re
import runpy
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from compare import assert_close, relative_error
from tolerances import META_GRADIENT, TIMES_TORCH

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ["hard_labels", "learned_labels", "decoder"]
SMALL = {"model": "ConvNetD1W8", "ipc": 1, "syn_steps": 4, "batch_syn": 4, "iterations": 2}


@pytest.fixture(params=NAMES)
def example(request, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


def arguments(example, **values):
    common = importlib.import_module("common")
    return common.arguments("", [], **getattr(example, "DEFAULTS", {}), **SMALL, **values)


def iterated(example, form, dtype, seed=0):
    """Losses of all iterations, and the first one's gradients by name."""
    p = example.problem(arguments(example, seed=seed), dtype)
    iterations = getattr(example, form)(p)
    losses = [next(iterations)]
    gradients = {name: t.grad.clone() for name, t in p.leaves.items()}
    return torch.tensor([*losses, *iterations], dtype=torch.float64), gradients


def test_both_forms_are_one_loop_in_float64(example):
    losses, gradients = iterated(example, "with_fastmtt", torch.float64)
    want_losses, want = iterated(example, "naive", torch.float64)
    assert len(losses) == SMALL["iterations"] and losses[0] != losses[1]
    assert_close(losses, want_losses, META_GRADIENT)
    assert gradients.keys() == want.keys() >= {"lr"}
    for name in want:
        assert_close(gradients[name], want[name], META_GRADIENT, name)


def test_float32_errs_at_most_twice_as_much_as_the_naive_form(example):
    ours, naives = {}, {}
    for seed in range(5):
        _, truth = iterated(example, "naive", torch.float64, seed)
        for errors, form in ((ours, "with_fastmtt"), (naives, "naive")):
            _, single = iterated(example, form, torch.float32, seed)
            for name, want in truth.items():
                assert single[name].dtype == torch.float32
                errors.setdefault(name, []).append(relative_error(single[name], want))
    vectors = [name for name in truth if truth[name].numel() > 1]  # one number's error is chance
    assert vectors
    for name in vectors:
        got, allowed = median(ours[name]), TIMES_TORCH * median(naives[name])
        assert got <= allowed, f"{name}: {ours[name]} against {naives[name]}"


def test_the_change_is_under_15_lines(example):
    common = importlib.import_module("common")
    deleted, written = common.changed_lines(example.naive, example.with_fastmtt)
    assert 0 < written < deleted and deleted + written < 15


@pytest.mark.parametrize("name", NAMES)
def test_the_script_prints_agreement_times_and_memories(name, monkeypatch, capsys):
    """Run by this process, whose children need not import torch's and scikit-learn's half again."""
    flags = [f"--{key}={value}" for key, value in {**SMALL, "syn_steps": 40}.items()]
    script = EXAMPLES / f"{name}.py"
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [str(script), *flags])
    runpy.run_path(str(script), run_name="__main__")
    told = capsys.readouterr().out
    rows = dict(re.findall(r"^([a-z_0-9.]\S*(?: \S+)*)\s{2,}(.*)$", told, re.MULTILINE))
    assert all(float(ms) > 0 for ms in rows["ms an iteration"].split())
    naive, ours = (float(mb) for mb in rows["peak memory, MB"].split())
    assert naive > ours > 0
    exact, single, our_single = (float(error) for error in rows["lr"].split())
    assert exact <= META_GRADIENT < min(single, our_single) <= max(single, our_single) < 1e-3
