"""What setup.py does where a compiler or a CUDA toolkit is, or is not."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from building import ROOT, load_setup

from fastmtt import toolchain

NAMES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "kernels")


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def make_toolkit(home, release="13.0", headers=toolchain.TORCH_CUDA_HEADERS):
    """A folder that answers as a CUDA toolkit does."""
    dryrun = f"echo '#$ TOP={home}/bin/..' >&2"
    version = f"echo 'Cuda compilation tools, release {release}, V{release}.88'"
    script(home / "bin" / "nvcc", f'if [ "$1" = --dryrun ]; then {dryrun}; else {version}; fi')
    (home / "include").mkdir()
    for header in headers:
        (home / "include" / header).touch()
    return home


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No CUDA variables, and a PATH on which only a test's own commands lie."""
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTMTT_CUDA", "CXX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def test_toolkit_behind_a_wrapper_script(bare):
    home = make_toolkit(bare / "opt" / "cuda-13.0")
    script(bare / "bin" / "nvcc", f'exec {home}/bin/nvcc "$@"')
    assert toolchain.find_cuda("13.2") == toolchain.CudaToolkit(home.resolve(), "13.0")


def test_toolkit_behind_a_link(bare):
    home = make_toolkit(bare / "opt" / "cuda")
    (bare / "bin" / "nvcc").symlink_to(home / "bin" / "nvcc")
    assert toolchain.find_cuda("13.0").home == home.resolve()


def test_cuda_home_goes_before_the_path(bare, monkeypatch):
    wanted, other = make_toolkit(bare / "wanted", "13.1"), make_toolkit(bare / "other", "13.0")
    script(bare / "bin" / "nvcc", f'exec {other}/bin/nvcc "$@"')
    monkeypatch.setenv("CUDA_HOME", str(wanted))
    assert toolchain.find_cuda("13.2") == toolchain.CudaToolkit(wanted, "13.1")


def test_headers_the_toolkit_lacks_come_from_pip(bare, monkeypatch):
    home = make_toolkit(bare / "cuda", headers=["cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h"])
    monkeypatch.setenv("CUDA_HOME", str(home))
    pip = bare / "site" / "nvidia" / "cu13" / "include"
    pip.mkdir(parents=True)
    monkeypatch.setattr(toolchain, "_pip_includes", lambda: iter([pip]))
    with pytest.raises(toolchain.NotFoundError, match="cusparse.h is neither in .* nor in a pip"):
        toolchain.find_cuda("13.2")
    (pip / "cusparse.h").touch()
    (pip / "cusolverDn.h").touch()
    assert toolchain.find_cuda("13.2").extra_includes == (pip,)


@pytest.mark.parametrize(
    ("environment", "torch_cuda", "words"),
    [
        ({"FASTMTT_CUDA": "0"}, "13.2", "switched off by FASTMTT_CUDA=0"),
        ({}, None, "a build without CUDA"),
        ({"CUDA_HOME": "/nowhere"}, "13.2", "CUDA_HOME=/nowhere has no bin/nvcc"),
        ({"CUDA_HOME": "{home}"}, "12.8", "toolkit 13.0 in .* but PyTorch is built for 12.8"),
    ],
)
def test_why_there_is_no_toolkit(bare, monkeypatch, environment, torch_cuda, words):
    home = make_toolkit(bare / "cuda")
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home=home))
    with pytest.raises(toolchain.NotFoundError, match=words):
        toolchain.find_cuda(torch_cuda)


def test_compiler_is_looked_for(bare, monkeypatch):
    with pytest.raises(toolchain.NotFoundError, match=r"no C\+\+ compiler \(looked for c\+\+, g\+"):
        toolchain.find_compiler()
    script(bare / "bin" / "g++", "")
    assert toolchain.find_compiler() == "g++"
    monkeypatch.setenv("CXX", "icpx")
    with pytest.raises(toolchain.NotFoundError, match="looked for icpx"):
        toolchain.find_compiler()


@pytest.fixture
def checkout(tmp_path):
    """A copy of what a build reads, without anything built."""
    place = tmp_path / "checkout"
    (place / "fastmtt").mkdir(parents=True)
    for name in NAMES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    for name in ("toolchain.py", "py.typed"):
        shutil.copy(ROOT / "fastmtt" / name, place / "fastmtt")
    (place / "fastmtt" / "__init__.py").write_text('__version__ = "7.0"\n')
    return place


def build(checkout, *command, **environment):
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("FASTMTT_", "CUDA", "TORCH"))}
    return subprocess.run(
        [sys.executable, "setup.py", *command],
        cwd=checkout,
        env={**ours, **environment},
        capture_output=True,
        text=True,
    )


def note(checkout):
    return (checkout / "fastmtt" / "_C_missing.txt").read_text()


def test_failed_compile_is_a_warning(checkout):
    old = checkout / "fastmtt" / "_C.cpython-311-old.so"
    old.touch()
    done = build(checkout, "build_ext", "--inplace", CXX="false", FASTMTT_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert "installed without its compiled ops: compiling failed" in done.stderr
    assert "compiling failed" in note(checkout)
    assert not old.exists()  # an older build would not fit the Python around it


def test_failed_compile_is_an_error_where_required(checkout):
    environment = {"CXX": "false", "FASTMTT_CUDA": "0", "FASTMTT_REQUIRE_EXT": "1"}
    assert build(checkout, "build_ext", "--inplace", **environment).returncode != 0


def test_no_compiler_is_an_error_where_required(checkout):
    done = build(checkout, "build", CXX="no-such-compiler", FASTMTT_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "FASTMTT_REQUIRE_EXT=1, but no C++ compiler (looked for no-such-compiler" in done.stderr


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"CXX": "no-such-compiler"}, "no C++ compiler"),
        ({"FASTMTT_NO_EXT": "1"}, "switched off by FASTMTT_NO_EXT=1"),
    ],
)
def test_pure_python_wheel_says_why_and_holds_only_the_package(checkout, environment, words):
    for name in ("tests", "bench", "configs", "docs"):
        (checkout / name).mkdir()
        (checkout / name / "__init__.py").touch()
    done = build(checkout, "bdist_wheel", **environment)
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    (wheel,) = (checkout / "dist").glob("fastmtt-7.0-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert words in archive.read("fastmtt/_C_missing.txt").decode()
    assert {Path(name).parts[0].split("-")[0] for name in names} == {"fastmtt"}
    assert "fastmtt/py.typed" in names and not any(name.endswith(".so") for name in names)


def test_targets_are_ours_unless_torchs_variable_names_others(monkeypatch):
    setup = load_setup()
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert [flag for flag in setup.compile_flags(None)["nvcc"] if "arch" in flag] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")  # PyTorch makes flags of it if there are none
    assert not any("arch" in flag for flag in setup.compile_flags(None)["nvcc"])


@pytest.mark.parametrize(
    ("targets", "has"),
    [(None, True), ("8.6;9.0a", True), ("9.0a+PTX 8.0", True), ("9.0", False), ("9.0+PTX", False)],
)
def test_ops_for_hopper_need_code_of_sm_90a(targets, has, bare, monkeypatch):
    setup = load_setup()
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if targets:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", targets)
    toolkit = toolchain.CudaToolkit(bare, "13.0")
    assert ("-DFASTMTT_SM90A" in setup.compile_flags(toolkit)["cxx"]) == has
    assert "-DFASTMTT_SM90A" not in setup.compile_flags(None)["cxx"]


def test_a_build_without_cuda_has_none_of_its_sources(monkeypatch):
    setup = load_setup()
    monkeypatch.setattr(setup, "write_facts", lambda cuda, flags: None)
    monkeypatch.setenv("FASTMTT_CUDA", "0")
    ops, _ = setup.extensions()
    assert "csrc/cpu/flat.cpp" in ops.sources and not any("cuda" in s for s in ops.sources)
    assert not any("cuda" in library for library in ops.libraries)


LOAD = """
import torch, fastmtt._C, fastmtt._build
names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastmtt::")]
on_gpu = {n for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, "CUDA")}
assert {"fastmtt::sgd_update", "fastmtt::sgd_update.into", "fastmtt::linear_xent"} <= on_gpu
assert fastmtt._build.build()["cuda"].endswith(", for 8.6"), fastmtt._build.build()["cuda"]
"""


@pytest.mark.slow
def test_cuda_sources_compile_link_and_load_for_the_targets_asked_for(checkout):
    try:
        toolchain.find_cuda(torch.version.cuda)
    except toolchain.NotFoundError as reason:
        pytest.skip(f"no usable CUDA toolkit: {reason}")
    for source in (checkout / "csrc" / "cpu").glob("*.cpp"):
        source.unlink()  # minutes of compiling that tell nothing here
    kept = {k: v for k, v in os.environ.items() if k.startswith("CUDA_")}
    kept |= {"FASTMTT_REQUIRE_EXT": "1", "TORCH_CUDA_ARCH_LIST": "8.6"}
    done = build(checkout, "build_ext", "--inplace", **kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "code=sm_86" in done.stdout and "code=sm_80" not in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD], cwd=checkout, capture_output=True, text=True
    )
    assert loaded.returncode == 0, loaded.stderr
