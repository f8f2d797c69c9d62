"""`python -m fastmtt.info` with the extension and without it."""

import os
import subprocess
import sys

import pytest
import torch

from fastmtt import info, toolchain
from fastmtt.ops import backends, reference


def test_report_names_versions_machine_and_every_op():
    text = info.report()
    assert torch.__version__.split("+")[0] in text
    for op in reference.__all__:
        assert any(line.split()[:1] == [op] for line in text.splitlines()), op


def test_extension_line_agrees_with_what_is_loaded():
    if backends.extension_error() is None:
        assert info.extension().startswith("loaded: ")
        assert f"for torch {torch.__version__}" in info.extension()
    else:
        assert info.extension().startswith(("none: ", "built, not loaded: "))


def test_pure_python_installation_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(info, "_build", None)
    monkeypatch.setattr(info, "__file__", str(tmp_path / "info.py"))
    monkeypatch.setattr(backends, "extension_error", lambda: "it cannot be loaded")
    assert info.extension() == "none: it cannot be loaded"
    (tmp_path / "_C_missing.txt").write_text("no C++ compiler (looked for c++)\n")
    assert info.extension() == "none: no C++ compiler (looked for c++)"
    assert "instruction sets" in info.report()


def test_no_toolkit_gives_its_reason(monkeypatch):
    monkeypatch.setenv("FASTMTT_CUDA", "0")
    assert ("CUDA toolkit", "none: switched off by FASTMTT_CUDA=0") in info.cuda()
    assert ("FASTMTT_CUDA", "0") in info.environment()


def test_toolkit_is_shown(monkeypatch, tmp_path):
    toolkit = toolchain.CudaToolkit(tmp_path, "13.0")
    monkeypatch.setattr(toolchain, "find_cuda", lambda torch_cuda: toolkit)
    assert ("CUDA toolkit", f"13.0 in {tmp_path}") in info.cuda()


@pytest.mark.parametrize("there", [True, False])
def test_convolutions_for_hopper_are_shown_where_they_are_built(there, monkeypatch):
    monkeypatch.setattr(backends, "hopper", lambda: there)
    assert ("compute capability 9.0" in dict(info.cuda())["CUDA kernels"]) == there


def test_command_with_a_backend_forced(monkeypatch, capsys):
    done = subprocess.run(
        [sys.executable, "-m", "fastmtt.info"],
        env={**os.environ, "FASTMTT_BACKEND": "reference"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert any(
        line.split()[:3] == ["dot", "reference", "forced"] for line in done.stdout.split("\n")
    )
    monkeypatch.setenv("FASTMTT_BACKEND", "abacus")
    info.main([])
    assert "'abacus' is not known" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        info.main(["--no-such-flag"])
    assert stop.value.code == 2


def test_missing_extension_is_explained_once(monkeypatch):
    why = "no such file"
    row = backends.Row("dot", "reference", why)
    monkeypatch.setattr(backends, "extension_error", lambda: why)
    monkeypatch.setattr(backends, "table", lambda: [row])
    assert info.ops() == [("dot", "reference  the extension is not loaded")]


def told(capsys, flags):
    info.main(flags.split())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Network"
    return {
        name: value.strip() for name, value in (line.strip().split(" ", 1) for line in lines[1:])
    }


def test_a_network_that_the_compiled_verbs_serve(capsys):
    found = told(capsys, "--model ConvNetD4 --im_size 64 --classes 200")
    assert found["images"] == "3x64x64, 200 classes" and found["parameters"] == "857 160"
    assert found["student"] == "compiled verbs: 4 blocks of conv_block, then linear_xent"
    assert "side by side" in found["evaluation"]


def test_a_network_that_its_own_forward_serves(capsys):
    found = told(capsys, "--model ConvNetD2W8AL --im_size 28 --channels 1")
    assert found["images"] == "1x28x28, 10 classes"
    assert found["student"] == (
        "generic verbs, by double backward: block 1: its activation is not ReLU"
    )
    assert "one network after another" in found["evaluation"]


def test_a_network_that_is_no_student(capsys):
    found = told(capsys, "--model ConvNetBN")
    assert found["parameters"] == "320 010"
    assert found["student"].startswith("none: features.1 is BatchNorm2d in training mode")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model ResNet19", "network 'ResNet19' is not known; did you mean ResNet1"),
        ("--model ConvNet --classes 0", "classes is 0, wanted a number at least 1"),
        ("--model VGG11 --im_size 16", "of 16x16 images nothing is left"),
    ],
)
def test_an_impossible_network_is_one_sentence(capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        info.main(flags.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("fastmtt: ") and words in said
