"""Compiles the Triton kernels ahead of time, without a GPU, and reads what came of it.

    python tests/kernels/compile_kernels.py            every specimen, a line of JSON each
    python tests/kernels/compile_kernels.py --one      the first form of each kernel and precision
    python tests/kernels/compile_kernels.py --write    every specimen, into bench/results/kernels.md

A specimen is what a module's ``specimens()`` yields: name, kernel, types of the run-time arguments,
constants, configuration. TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import fastmtt.kernels
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TABLE = Path(__file__).parents[2] / "bench" / "results" / "kernels.md"
SHARED_KB = {80: 163, 90: 227}  # of a program at most, by compute capability
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Specimen(NamedTuple):
    """A kernel in one form and configuration; ``module`` is its file's name."""

    module: str
    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    config: Any

    @property
    def key(self) -> tuple[str, str]:
        """What is one line of the table: (module: name, configuration)."""
        return f"{self.module}: {self.name}", str(self.config)

    @property
    def wants_wgmma(self) -> bool:
        """Whether Hopper must multiply it by wgmma: a convolution of many channels.

        Four warps work on 64 rows together. Weight gradients sum over pixels, which are not the
        contiguous axis: wgmma reads bfloat16 so from shared memory, but not tf32.
        """
        sizes = {**self.constants, **self.config.sizes}
        channels = sizes.get("C_IN", sizes.get("CIN", 0))
        rows = sizes.get("BLOCK_M", sizes.get("M", 0))
        formats = ("bf16", "tf32") if "C_IN" in sizes else ("bf16",)
        reads = sizes.get("PRECISION") in formats or "*bf16" in self.signature.values()
        return reads and channels >= 64 and rows >= 64 and self.config.warps >= 4


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of a specimen.

    Attributes:
        name: module and name of the specimen.
        config: its configuration as text.
        capability: 80 or 90.
        registers: of a thread.
        spilled: bytes of a thread's registers that go through memory.
        shared_kb: KiB of shared memory of a program.
        wgmma: whether Hopper's matrix instruction occurs.
        wants_wgmma: whether it must.
    """

    name: str
    config: str
    capability: int
    registers: int
    spilled: int
    shared_kb: float
    wgmma: bool
    wants_wgmma: bool


def specimens() -> Iterator[Specimen]:
    """Those of every module of ``fastmtt.kernels`` that has any."""
    for found in pkgutil.iter_modules(fastmtt.kernels.__path__):
        module = importlib.import_module(f"fastmtt.kernels.{found.name}")
        for parts in getattr(module, "specimens", tuple)():
            yield Specimen(found.name, *parts)


def one_each(all_of_them: Sequence[Specimen]) -> list[int]:
    """Positions of the first specimen of each kernel in each precision or other kind."""
    seen: dict[Any, int] = {}
    for place, specimen in enumerate(all_of_them):
        kinds = {k: v for k, v in specimen.constants.items() if isinstance(v, str)}
        seen.setdefault((specimen.module, specimen.kernel.__name__, *kinds.items()), place)
    return list(seen.values())


def compile_one(specimen: Specimen, capability: int) -> Compiled:
    """Compile for a GPU that need not be there; pointers are taken as aligned to 16 bytes."""
    kernel, config = specimen.kernel, specimen.config
    constants = {**specimen.constants, **config.sizes}
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else specimen.signature[n] for n in names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if signature[name].startswith("*")
    }
    made = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.warps, "num_stages": config.stages},
    )
    usage = _usage(made.asm["cubin"])
    name, configuration = specimen.key
    return Compiled(
        name,
        configuration,
        capability,
        usage["REG"],
        usage["STACK"] + usage["LOCAL"],
        made.metadata.shared / 1024,
        "wgmma.mma_async" in made.asm["ptx"],
        specimen.wants_wgmma,
    )


def _usage(cubin: bytes) -> dict[str, int]:
    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [_CUOBJDUMP, "--dump-resource-usage", file]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(count) for key, count in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def _compile_at(job: tuple[int, int]) -> Compiled:
    place, capability = job
    return compile_one(list(specimens())[place], capability)


def table(results: Sequence[Compiled]) -> str:
    """As Markdown, a line for each specimen with both capabilities side by side."""
    lines = [
        "# The Triton kernels as compiled ahead of time",
        "",
        f"`python tests/kernels/compile_kernels.py --write`, Triton {triton.__version__}; 8.0 and "
        "9.0 are compute capabilities. None spills registers. A kernel's launch chooses among its "
        "configurations by measuring them.",
        "",
        "| kernel | configuration | registers 8.0 | registers 9.0 | shared KB 8.0 | shared KB 9.0 "
        "| wgmma |",
        "|---|---|---|---|---|---|---|",
    ]
    pairs: dict[tuple[str, str], dict[int, Compiled]] = {}
    for result in results:
        pairs.setdefault((result.name, result.config), {})[result.capability] = result
    for (name, config), by in pairs.items():
        old, new = by.get(80), by[90]  # not every configuration is for both
        registers, shared = (old.registers, f"{old.shared_kb:.1f}") if old else ("", "")
        lines.append(
            f"| {name} | {config} | {registers} | {new.registers} | {shared} "
            f"| {new.shared_kb:.1f} | {'yes' if new.wgmma else 'no'} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Compile in as many processes as there are cores."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 interprets kernels instead of compiling them: unset it")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--one", action="store_true", help="the first form of each kernel")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    arguments = parser.parse_args()
    all_of_them = list(specimens())
    places = one_each(all_of_them) if arguments.one else range(len(all_of_them))
    jobs = [
        (place, capability)
        for place in places
        for capability in SHARED_KB
        if capability >= all_of_them[place].config.capability
    ]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        results = []
        for result in pool.map(_compile_at, jobs):
            results.append(result)
            print(json.dumps(asdict(result)), flush=True)
    if arguments.write:
        TABLE.write_text(table(results))


if __name__ == "__main__":
    main()
