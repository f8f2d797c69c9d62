"""How the tests compile csrc/cuda: with setup.py's flags, and for the host."""

import os

import torch
from building import ROOT, load_setup

from fastmtt import toolchain

CSRC = ROOT / "csrc" / "cuda"
HERE = ROOT / "tests" / "cuda"


def host_flags(sanitized: bool) -> list[str]:
    """Of the C++ compiler: a warning is an error, and sanitized, so is a byte out of place."""
    checks = load_setup().SANITIZED if sanitized else ["-O1"]
    return [*checks, "-ffp-contract=off", "-Wall", "-Werror", "-DFASTMTT_ON_HOST"]


def load_on_host():
    """The ops of csrc/cuda compiled for the host, as ``torch.ops.fastmtt_on_host``.

    FASTMTT_SANITIZE=1 compiles them with sanitizers; the process must have loaded these first.
    """
    from torch.utils.cpp_extension import load

    sanitized = os.environ.get("FASTMTT_SANITIZE") == "1"
    folder = ROOT / "build" / ("on_host_sanitized" if sanitized else "on_host")
    folder.mkdir(parents=True, exist_ok=True)
    load(
        "fastmtt_on_host",
        [str(path) for path in [*sorted(CSRC.glob("*_ops.cpp")), *HERE.glob("*.cpp")]],
        extra_cflags=host_flags(sanitized),
        extra_ldflags=[flag for flag in host_flags(sanitized) if "-fsanitize" in flag],
        extra_include_paths=[str(HERE)],
        build_directory=str(folder),
        is_python_module=False,
    )
    return torch.ops.fastmtt_on_host


def declare_on_host() -> torch.library.Library:
    """The schemas of fastmtt's ops in the namespace ``fastmtt_on_host``, as long as it lives."""
    declared = torch.library.Library("fastmtt_on_host", "DEF")
    for name in torch._C._dispatch_get_all_op_names():
        if name.startswith("fastmtt::"):
            op, _, overload = name.removeprefix("fastmtt::").partition(".")
            schema = getattr(getattr(torch.ops.fastmtt, op), overload or "default")._schema
            declared.define(str(schema).removeprefix("fastmtt::"))
    return declared


def device_command(source) -> list[str]:
    """The C++ compiler's for a file of ops as a GPU's build compiles it; nothing is made."""
    from torch.utils.cpp_extension import include_paths

    toolkit = toolchain.find_cuda(torch.version.cuda)
    folders = [*include_paths(), toolkit.home / "include"]
    includes = [flag for folder in folders for flag in ("-isystem", str(folder))]
    flags = load_setup().compile_flags(toolkit)["cxx"]
    return ["g++", "-std=c++20", "-Werror", "-fsyntax-only", *flags, *includes, str(source)]
