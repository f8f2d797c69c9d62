"""`python -m fastmtt.info`: what is installed, what was built, what serves each op, and why.

With `--model NAME` it tells of a network instead: its parameters and what trains it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastmtt import toolchain
from fastmtt.command import command
from fastmtt.errors import FastmttError, NoStudentError
from fastmtt.ops import backends, reference
from fastmtt.student import Structure, find_structure, make_student
from fastmtt.student.zoo import make_network

Lines = list[tuple[str, str]]


def _load_build() -> ModuleType | None:
    try:
        return importlib.import_module("fastmtt._build")
    except ImportError:  # a pure Python installation; `extension` says why
        return None


_build = _load_build()


def versions() -> Lines:
    """Python, fastmtt and the packages whose version decides about results."""
    lines = [("Python", platform.python_version())]
    for package in ("fastmtt", "torch", "torchvision", "triton", "numpy", "kornia"):
        try:
            lines.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            lines.append((package, "not installed"))
    return lines


def processor() -> Lines:
    """The processor, its instruction sets as far as the extension can tell, and the threads."""
    capability = torch.backends.cpu.get_cpu_capability()
    if _build is None:
        sets = f"PyTorch uses {capability}; the extension, not loaded, would tell more"
    else:
        has = instruction_sets()
        absent = [name for name, there in has.items() if not there]
        sets = " ".join(name for name, there in has.items() if there) or "not known"
        sets += f" (not: {' '.join(absent)})" if absent else ""
        sets += f"; PyTorch uses {capability}"
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} logical processors"
    return [("processor", processor_name()), ("instruction sets", sets), ("threads", threads)]


def instruction_sets() -> dict[str, bool]:
    """Which instruction sets the processor offers; empty where the extension cannot tell."""
    return {} if _build is None else _build.processor()


def processor_name() -> str:
    """The processor as the system names it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def gpu() -> str:
    """The GPUs PyTorch can use, or why it can use none."""
    if torch.version.cuda is None:
        return "none: this PyTorch is a build without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"none: {str(error).splitlines()[0].split('. ')[0]}"
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "; ".join(
        f"{card.name}, sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB"
        for card in cards
    )


def extension() -> str:
    """How the compiled ops were built, or why there are none."""
    error = backends.extension_error()
    built = "" if _build is None else _build_line(_build.build())
    if error is None:
        return f"loaded: {built}" if built else "loaded"
    if built:
        return f"built, not loaded: {error}; {built}; this is torch {torch.__version__}"
    note = Path(__file__).with_name("_C_missing.txt")
    return f"none: {note.read_text().strip()}" if note.is_file() else f"none: {error}"


def _build_line(facts: dict[str, Any]) -> str:
    sets = " ".join(facts["instruction_sets"])
    return f"{facts['compiler']} ({facts['flags']}; baseline {sets}) for torch {facts['torch']}"


def cuda() -> Lines:
    """The CUDA toolkit that a build would use now, and what the extension was built with."""
    try:
        here = str(toolchain.find_cuda(torch.version.cuda))
    except toolchain.NotFoundError as reason:
        here = f"none: {reason}"
    built = [] if _build is None else [("CUDA in the extension", _build.build()["cuda"])]
    held = [op for op in reference.__all__ if backends.compiled(op, "CUDA")]
    kernels = ", ".join(held) or "none"
    if backends.hopper():
        kernels += "; for compute capability 9.0 Triton's tuner also has CUDA convolutions"
    return [("CUDA toolkit", here), *built, ("CUDA kernels", kernels)]


def ops() -> Lines:
    """For every op the backend that would serve it, with the reason."""
    try:
        rows = backends.table()
    except FastmttError as error:
        return [("none", str(error))]
    unloaded = backends.extension_error()  # told in full by `extension`, not again for each op
    reasons = ["the extension is not loaded" if r.reason == unloaded else r.reason for r in rows]
    return [(r.op, f"{r.backend:<9}  {why}") for r, why in zip(rows, reasons, strict=True)]


def environment() -> Lines:
    """The variables in force that fastmtt reads."""
    named = [(name, os.environ[name]) for name in sorted(os.environ) if name.startswith("FASTMTT_")]
    return named or [("no FASTMTT_ variable", "")]


def network(name: str, image_shape: tuple[int, int, int], classes: int) -> Lines:
    """A network's number of parameters and what computes it as a student and in evaluation.

    Raises:
        FastmttError: there is no such network for such images.
    """
    module = make_network(name, image_shape=image_shape, classes=classes)
    count = sum(p.numel() for p in module.parameters())
    structure = find_structure(module, image_shape)
    if isinstance(structure, Structure):
        student = f"compiled verbs: {structure.depth} blocks of conv_block, then linear_xent"
        evaluated = "networks side by side, by the same verbs"
    else:
        student = f"generic verbs, by double backward: {structure}"
        evaluated = "one network after another, by its own forward"
        try:
            make_student(module, image_shape)
        except NoStudentError as reason:
            student = f"none: {reason}"
    size = f"{count:,}".replace(",", " ")
    images = f"{'x'.join(str(size) for size in image_shape)}, {classes} classes"
    return [
        ("network", name),
        ("images", images),
        ("parameters", size),
        ("student", student),
        ("evaluation", evaluated),
    ]


def report() -> str:
    """All of it as one text."""
    machine = [*processor(), ("GPU", gpu()), ("extension", extension()), *cuda()]
    sections = {
        "Versions": versions(),
        "Machine": machine,
        "Ops": ops(),
        "Environment": environment(),
    }
    return _text(sections)


def _text(sections: dict[str, Lines]) -> str:
    width = max(len(name) for lines in sections.values() for name, _ in lines)
    texts = []
    for title, lines in sections.items():
        body = "\n".join(f"  {name:<{width}}  {value}".rstrip() for name, value in lines)
        texts.append(f"{title}\n{body}")
    return "\n\n".join(texts)


@command
def main(argv: list[str] | None = None) -> None:
    """Print the report, or what there is to know of one network."""
    parser = argparse.ArgumentParser(prog="python -m fastmtt.info", description=__doc__)
    parser.add_argument("--model", help="tell of this network instead (ConvNetD4, timm:NAME)")
    parser.add_argument("--im_size", type=int, default=32, help="height and width of its images")
    parser.add_argument("--channels", type=int, default=3, help="their channels")
    parser.add_argument("--classes", type=int, default=10, help="number of classes")
    asked = parser.parse_args(argv)
    if asked.model is None:
        print(report())
        return
    for name in ("im_size", "channels", "classes"):
        if getattr(asked, name) < 1:
            raise FastmttError(f"{name} is {getattr(asked, name)}, wanted a number at least 1")
    shape = (asked.channels, asked.im_size, asked.im_size)
    print(_text({"Network": network(asked.model, shape, asked.classes)}))


if __name__ == "__main__":
    main()
