"""Builds the compiled part of fastmtt; all else about the package is in pyproject.toml.

The extension is optional: without a compiler, or when compiling fails, fastmtt installs as pure
Python, leaves the reason in fastmtt/_C_missing.txt and `python -m fastmtt.info` shows it.

    FASTMTT_NO_EXT=1        compile nothing
    FASTMTT_REQUIRE_EXT=1   an extension that cannot be built fails the installation
    FASTMTT_CUDA=0          leave csrc/cuda out, as where no CUDA toolkit is found
    TORCH_CUDA_ARCH_LIST    compile csrc/cuda for these, in PyTorch's words ("8.6;9.0+PTX")
    FASTMTT_SANITIZE=1      check addresses and undefined behaviour (`make sanitize`)
"""

import importlib.util
import os
import re
import shlex
import sys
import warnings
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# sm_80 code serves all of 8.x; 9.0a is Hopper with wgmma; newer cards compile the PTX themselves.
CUDA_TARGETS = {"sm_80": "compute_80", "sm_90a": "compute_90a", "compute_90": "compute_90"}
# C++20 as torch 2.15 has it: before that, lambdas capture no structured bindings
NVCC = ["-std=c++20", "-O3", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Werror"]
# Every access asks a function: compiled inline, unrolled kernels take a quarter of an hour. Null
# pointers and objects' ends, as long to compile, are the address sanitizer's as well.
SANITIZED = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
SANITIZED += ["-fno-sanitize=null,object-size", "-fno-sanitize-recover=all"]
SANITIZED += ["--param", "asan-instrumentation-with-call-threshold=0"]


def load_toolchain():
    """Load fastmtt/toolchain.py by its path: the package itself needs an installed torch."""
    spec = importlib.util.spec_from_file_location(
        "fastmtt_toolchain", ROOT / "fastmtt" / "toolchain.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


toolchain = load_toolchain()


def required() -> bool:
    """Whether a missing extension is an error."""
    return os.environ.get("FASTMTT_REQUIRE_EXT") == "1"


def sources(*patterns: str) -> list[str]:
    """Files of csrc/, relative to the repository as setuptools wants them."""
    found = [path for pattern in patterns for path in ROOT.glob(f"csrc/{pattern}")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def for_hopper() -> bool:
    """Whether machine code of sm_90a is asked for: of nothing else can csrc/cuda/hopper_* be."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not listed:
        return "sm_90a" in CUDA_TARGETS
    return any(arch.removesuffix("+PTX") == "9.0a" for arch in re.split(r"[ ;]+", listed))


def target_flags(targets: dict[str, str]) -> list[str]:
    """What makes nvcc compile for these: code by the architecture it is made from."""
    return [f"-gencode=arch={arch},code={code}" for code, arch in targets.items()]


def compile_flags(toolkit) -> dict[str, list[str]]:
    """Flags by compiler. Headers from pip follow as system folders: the toolkit's own go first.

    nvcc goes without them, as a .cu file does without torch, which includes them.
    """
    extra = toolkit.extra_includes if toolkit else ()
    headers = [flag for folder in extra for flag in ("-isystem", str(folder))]
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    # nothing fused behind our back: what two kernels compute must have the same bits in both
    speed = SANITIZED if os.environ.get("FASTMTT_SANITIZE") == "1" else ["-O3"]
    hopper = ["-DFASTMTT_SM90A"] if toolkit and for_hopper() else []
    cxx = [*speed, "-ffp-contract=off", "-Wall", *openmp, *hopper, *headers]
    # PyTorch itself says what TORCH_CUDA_ARCH_LIST asks for, if nothing is said here
    targets = {} if os.environ.get("TORCH_CUDA_ARCH_LIST") else CUDA_TARGETS
    return {"cxx": cxx, "nvcc": [*NVCC, *target_flags(targets)]}


def write_facts(cuda: str, flags: list[str]) -> None:
    """Write the header through which csrc/build_info.cpp knows how `_C` was built."""
    import torch

    facts = {"TORCH": torch.__version__, "CUDA": cuda, "FLAGS": shlex.join(flags)}
    text = "".join(f'#define FASTMTT_{key} R"({value})"\n' for key, value in facts.items())
    header = ROOT / "build" / "generated" / "build_facts.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.is_file() or header.read_text() != text:  # an unchanged one costs no compile
        header.write_text(text)


def cuda_part() -> tuple[object | None, list[str], str]:
    """The CUDA toolkit, if there is something to compile with it, the sources, and a word on it."""
    import torch

    found = sources("cuda/*.cu", "cuda/*.cpp")
    try:
        toolkit = toolchain.find_cuda(torch.version.cuda)
    except toolchain.NotFoundError as reason:
        return None, [], f"none: {reason}"
    if not found:
        return None, [], "none: csrc/cuda has no sources"
    os.environ["CUDA_HOME"] = str(toolkit.home)  # read when cpp_extension is imported
    targets = os.environ.get("TORCH_CUDA_ARCH_LIST") or ", ".join(CUDA_TARGETS)
    return toolkit, found, f"{toolkit}, for {targets}"


def extensions() -> list[Extension]:
    """`fastmtt._C`, the ops, and `fastmtt._build`, which reports facts and needs no torch."""
    toolkit, cuda_sources, cuda = cuda_part()
    from torch.utils.cpp_extension import CppExtension, CUDAExtension, include_paths

    flags = compile_flags(toolkit)
    write_facts(cuda, flags["cxx"])
    kind = CUDAExtension if toolkit else CppExtension
    ops = [path for path in sources("*.cpp", "cpu/*.cpp") if path != "csrc/build_info.cpp"]
    link = [flag for flag in flags["cxx"] if flag.startswith(("-fopenmp", "-fsanitize"))]
    return [
        kind(
            "fastmtt._C",
            ops + cuda_sources,
            depends=sources("*.h", "cpu/*.h", "cuda/*.h"),
            extra_compile_args=flags,
            extra_link_args=link,
        ),
        Extension(
            "fastmtt._build",
            ["csrc/build_info.cpp"],
            include_dirs=[*include_paths(), str(ROOT / "build" / "generated")],
            extra_compile_args={"cxx": flags["cxx"]},
        ),
    ]


def go_without(folder: Path, reason: str) -> None:
    """Leave a package folder without an extension, an older one included, and say why there."""
    for old in [*folder.glob("_C.*.so"), *folder.glob("_build.*.so")]:
        old.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_C_missing.txt").write_text(reason + "\n")
    warnings.warn(f"fastmtt is installed without its compiled ops: {reason}", stacklevel=2)


def pure_command(reason: str) -> type[build_py]:
    """The build_py of an installation that compiles nothing."""

    class BuildPure(build_py):
        def run(self) -> None:
            super().run()
            go_without((ROOT if self.editable_mode else Path(self.build_lib)) / "fastmtt", reason)

    return BuildPure


def compiling_command():
    """PyTorch's build_ext, with what must happen when compiling fails."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildOrGoWithout(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # pip gives each editable installation a fresh folder; in one that stays, ninja
            # compiles only what changed.
            self.build_temp = str(ROOT / "build" / "objects")

        def run(self) -> None:
            package = (ROOT if self.inplace else Path(self.build_lib)) / "fastmtt"
            try:
                super().run()
            except Exception as error:
                if required():
                    raise
                self.extensions = self.distribution.ext_modules = []
                go_without(package, f"compiling failed ({error}); pip install -v shows all of it")
            else:
                (package / "_C_missing.txt").unlink(missing_ok=True)

    return BuildOrGoWithout


def build_options() -> dict:
    """What setup() is told about compiled code: the extension, or the reason to do without."""
    try:
        if os.environ.get("FASTMTT_NO_EXT") == "1":
            raise toolchain.NotFoundError("switched off by FASTMTT_NO_EXT=1")
        os.environ["CXX"] = toolchain.find_compiler()
        if importlib.util.find_spec("torch") is None:
            raise toolchain.NotFoundError("no torch to build with: --no-build-isolation lacks")
    except toolchain.NotFoundError as reason:
        if required():
            raise SystemExit(f"fastmtt: FASTMTT_REQUIRE_EXT=1, but {reason}") from None
        return {"cmdclass": {"build_py": pure_command(str(reason))}}
    return {"ext_modules": extensions(), "cmdclass": {"build_ext": compiling_command()}}


if __name__ == "__main__":
    os.chdir(ROOT)
    setup(
        packages=[*find_packages(include=["fastmtt", "fastmtt.*"]), "fastmtt.kernels"],
        package_dir={"fastmtt.kernels": "kernels"},  # "kernels" is another project's import name
        **build_options(),
    )
