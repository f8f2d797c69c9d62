"""What this machine has for building the compiled part: a C++ compiler, a CUDA toolkit.

Used by `setup.py`, which loads this file by its path (fastmtt is not installed then), and by
`python -m fastmtt.info`. So it imports nothing but the standard library.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What ATen/cuda/CUDAContext.h includes. A toolkit may come without the libraries' headers, since
# PyTorch brings these libraries as pip packages.
TORCH_CUDA_HEADERS = (
    "cuda_runtime_api.h",
    "cublas_v2.h",
    "cublasLt.h",
    "cusparse.h",
    "cusolverDn.h",
)


class NotFoundError(Exception):
    """What was looked for is not usable here; the message says why."""


@dataclass(frozen=True)
class CudaToolkit:
    """A usable CUDA toolkit: its folder, its release, and folders with the headers it lacks."""

    home: Path
    release: str
    extra_includes: tuple[Path, ...] = ()

    def __str__(self) -> str:
        """One line for a person."""
        extra = "".join(f", headers from {folder}" for folder in self.extra_includes)
        return f"{self.release} in {self.home}{extra}"


def find_compiler() -> str:
    """The C++ compiler's command: `$CXX`, else the first of c++, g++, clang++.

    Raises:
        NotFoundError: no such command, or Python was installed without its C headers.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    found = [command for command in wanted if shutil.which(command.split()[0])]
    if not found:
        raise NotFoundError(f"no C++ compiler (looked for {', '.join(wanted)} on the PATH)")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        raise NotFoundError(f"no Python.h in {sysconfig.get_path('include')} (python3-dev lacks)")
    return found[0]


def find_cuda(torch_cuda: str | None) -> CudaToolkit:
    """The CUDA toolkit to build with.

    Args:
        torch_cuda: `torch.version.cuda`; the toolkit must have the same major release.

    Raises:
        NotFoundError: switched off, none there, or not one that PyTorch can be built with.
    """
    if os.environ.get("FASTMTT_CUDA") == "0":
        raise NotFoundError("switched off by FASTMTT_CUDA=0")
    if torch_cuda is None:
        raise NotFoundError("the installed PyTorch is a build without CUDA")
    home = _cuda_home()
    answer = _ask(home / "bin" / "nvcc", "--version")
    match = re.search(r"release (\d+\.\d+)", answer)
    if match is None:
        raise NotFoundError(f"{home / 'bin' / 'nvcc'} --version names no release")
    if match[1].split(".")[0] != torch_cuda.split(".")[0]:
        raise NotFoundError(f"toolkit {match[1]} in {home}, but PyTorch is built for {torch_cuda}")
    return CudaToolkit(home, match[1], _headers_from_pip(home))


def _cuda_home() -> Path:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            home = Path(os.environ[variable])
            if (home / "bin" / "nvcc").is_file():
                return home
            raise NotFoundError(f"{variable}={home} has no bin/nvcc")
    command = shutil.which("nvcc")
    if command:
        return _home_by_nvcc(command)
    if Path("/usr/local/cuda/bin/nvcc").is_file():
        return Path("/usr/local/cuda").resolve()
    raise NotFoundError("no nvcc on the PATH, no CUDA_HOME, no /usr/local/cuda")


def _home_by_nvcc(command: str) -> Path:
    # The nvcc on the PATH may be a script or a link that lies outside the toolkit. A dry run makes
    # the real one print where it lives; the source it is given need not exist.
    said = _ask(command, "--dryrun", "-c", "none.cu")
    match = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    home = Path(match[1].strip()).resolve() if match else Path(command).resolve().parents[1]
    if not (home / "bin" / "nvcc").is_file():
        raise NotFoundError(f"{command} does not say which toolkit it belongs to: set CUDA_HOME")
    return home


def _ask(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFoundError(f"{command[0]} does not run: {error}") from error
    return done.stdout + done.stderr


def _headers_from_pip(home: Path) -> tuple[Path, ...]:
    own = [home / "include", *home.glob("targets/*/include")]
    folders: list[Path] = []
    for header in TORCH_CUDA_HEADERS:
        if any((folder / header).is_file() for folder in [*own, *folders]):
            continue
        found = next((d for d in _pip_includes() if (d / header).is_file()), None)
        if found is None:
            raise NotFoundError(f"{header} is neither in {home} nor in a pip package under nvidia/")
        folders.append(found)
    return tuple(folders)


def _pip_includes() -> Iterator[Path]:
    # nvidia/cu13/include, or a folder a library (nvidia/cusparse/include) up to CUDA 12.
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations if spec else None) or ():
        yield from sorted(Path(root).glob("*/include"))
