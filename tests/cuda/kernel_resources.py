"""Compiles the CUDA kernels as setup.py does and reads what ptxas made of them; needs no GPU.

python tests/cuda/kernel_resources.py            every kernel and target, a line of JSON each
python tests/cuda/kernel_resources.py --write    into bench/results/cuda_kernels.md
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from building import ROOT, load_setup

from fastmtt import toolchain

CSRC = ROOT / "csrc" / "cuda"
TABLE = ROOT / "bench" / "results" / "cuda_kernels.md"
SHARED = 48 * 1024  # bytes of a block at most, where they are declared and not asked for
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:.*?, (\d+) bytes smem)?")


@dataclass(frozen=True)
class Resources:
    """What a kernel takes on a target.

    Attributes:
        file: the family's name.
        kernel: with its template's arguments.
        target: sm_80, sm_90a.
        registers: of a thread.
        local: bytes of a thread that go through memory: spilled registers and indexed arrays.
        shared: bytes of a block, those aside that a launch asks for.
    """

    file: str
    kernel: str
    target: str
    registers: int
    local: int
    shared: int

    @property
    def empty(self) -> bool:
        """Whether the target lacks the instructions: a plan of hopper_*.cu on another."""
        return "Plan<" in self.kernel and self.target != "sm_90a"

    def complaints(self) -> Iterator[str]:
        """What is wrong with it, in words."""
        if self.local:
            yield f"{self.kernel} on {self.target} keeps {self.local} bytes a thread in memory"
        if self.shared > SHARED:
            yield f"{self.kernel} on {self.target} shares {self.shared} bytes, of {SHARED}"


def families() -> list[str]:
    """Names of the files that nvcc compiles."""
    return sorted(path.stem for path in CSRC.glob("*.cu"))


def command(home: Path, source: Path, made: Path) -> list[str]:
    """Nvcc's, with the flags of the build for its targets that are machine code."""
    setup = load_setup()
    code = [flag for flag in setup.target_flags(setup.CUDA_TARGETS) if "code=sm" in flag]
    own = ["--expt-relaxed-constexpr", *setup.NVCC, *code]  # the first is PyTorch's
    return [str(home / "bin" / "nvcc"), *own, "-Xptxas", "-v", "-c", str(source), "-o", str(made)]


def measure(family: str) -> list[Resources]:
    """Every kernel of a family on every target.

    Raises:
        NotFoundError: there is no usable toolkit.
        RuntimeError: a warning or an error of nvcc.
    """
    home = toolchain.find_cuda(torch.version.cuda).home
    with TemporaryDirectory() as folder:
        made = Path(folder, "family.o")
        call = command(home, CSRC / f"{family}.cu", made)
        done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{family}.cu does not compile:\n{done.stdout}{done.stderr}")
    found = [result for result in _parsed(family, done.stderr) if not result.empty]
    return sorted(found, key=lambda r: (r.kernel, r.target))


def _parsed(family: str, text: str) -> Iterator[Resources]:
    entry, local = None, 0
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry = match
        elif match := _STACK.search(line):
            local = sum(int(count) for count in match.groups())
        elif (match := _USED.search(line)) and entry is not None:
            registers, shared = int(match[1]), int(match[2] or 0)
            yield Resources(family, kernel_name(entry[1]), entry[2], registers, local, shared)
            entry = None


def kernel_name(mangled: str) -> str:
    """``RowSums<float, Products<float>>`` of a launched function's mangled name."""
    told = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout
    short = re.sub(r"fastmtt::cuda::|hopper::|gradient::", "", told)
    inner = short.partition("<")[2].partition(">(")[0]
    return re.sub(r">\s+(?=>)", ">", inner).strip()


def release() -> str:
    """Of the toolkit's nvcc."""
    return toolchain.find_cuda(torch.version.cuda).release


def table(results: Sequence[Resources]) -> str:
    """As Markdown, a line a kernel."""
    lines = [
        "# The CUDA kernels as compiled",
        "",
        f"`python tests/cuda/kernel_resources.py --write`, nvcc {release()}. None spills. What a",
        "launch asks for is not among the shared bytes: up to 227 KB for a plan of hopper_*.",
        "",
        "| file | kernel | registers sm_80 | registers sm_90a | shared bytes sm_80 "
        "| shared bytes sm_90a |",
        "|---|---|---|---|---|---|",
    ]
    pairs: dict[tuple[str, str], dict[str, Resources]] = {}
    for result in results:
        pairs.setdefault((result.file, result.kernel), {})[result.target] = result
    for (file, kernel), by in pairs.items():
        on = [by.get("sm_80"), by["sm_90a"]]
        cells = [str(r.registers) if r else "-" for r in on] + [
            str(r.shared) if r else "-" for r in on
        ]
        lines.append(f"| {file} | `{kernel}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Compile all families."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    arguments = parser.parse_args()
    results = []
    for family in families():
        found = measure(family)
        results += found
        for result in found:
            print(json.dumps(asdict(result)), flush=True)
    if arguments.write:
        TABLE.write_text(table(results))


if __name__ == "__main__":
    main()
