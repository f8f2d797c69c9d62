"""Which configuration a kernel runs in: measured once for each size, kept in a file, told to runs.

Choices change rounding at most, never a result's meaning. They are kept in ``FASTMTT_CACHE``, one
file for each kind of GPU and version of Triton, so that two runs on one machine agree. Kernels are
not specialised on how many images they are given: other batches are measured, not compiled anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import triton

from fastmtt.ops.backends import recording_stream

REPEATS = 5  # timed runs of each configuration, one after another
interpreting = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel.

    Attributes:
        sizes: its tile sizes and other constants by parameter name.
        warps: warps a program.
        stages: depth of the software pipeline.
        capability: the least compute capability it is for; lesser ones would spill its registers.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    capability: int = 80

    @property
    def launch(self) -> dict[str, Any]:
        """Keyword arguments of the launch."""
        return {**self.sizes, "num_warps": self.warps, "num_stages": self.stages}

    def __str__(self) -> str:
        """The name under which the choice is kept."""
        sizes = ",".join(f"{name}={size}" for name, size in self.sizes.items())
        return f"{sizes};warps={self.warps};stages={self.stages}"


def choose(
    kernel: str,
    key: Sequence[Hashable],
    configs: Sequence[Config],
    run: Callable[[Config], object],
) -> Config:
    """The fastest configuration for a size; measured at the first call, remembered from then on.

    Args:
        kernel: its name.
        key: everything the best choice depends on: sizes, precision, what is asked for.
        configs: what to choose from; the first one where nothing can be measured.
        run: launches the kernel in one configuration; results may be written any number of times.
    """
    if len(configs) == 1 or interpreting:
        return configs[0]
    major, minor = torch.cuda.get_device_capability()
    configs = [config for config in configs if config.capability <= 10 * major + minor]
    offered = sha256("|".join(map(str, configs)).encode()).hexdigest()[:8]  # others, choose anew
    name = f"{kernel}({','.join(map(str, key))}) of {offered}"
    chosen = _choices()
    if name not in chosen:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"{name} is captured before it ran once: run the call eagerly first")
        chosen[name] = str(_fastest(name, configs, run))
        _save(chosen)
    by_name = {str(config): config for config in configs}
    if chosen[name] not in by_name:  # a damaged file
        del chosen[name]
        return choose(kernel, key, configs, run)
    return by_name[chosen[name]]


def _fastest(name: str, configs: Sequence[Config], run: Callable[[Config], object]) -> Config:
    measured = [(_seconds(config, run), config) for config in _fitting(configs, run)]
    if not measured:
        raise RuntimeError(f"no configuration of {name} fits this GPU; use --backend reference")
    return min(measured, key=lambda pair: pair[0])[1]


def _fitting(configs: Sequence[Config], run: Callable[[Config], object]) -> list[Config]:
    """The configurations the GPU has room for, compiled."""
    fitting = []
    for config in configs:
        try:
            run(config)
        except triton.runtime.errors.OutOfResources:
            continue
        except RuntimeError as error:  # a CUDA kernel's, on a part of a GPU
            if "resources requested for launch" not in str(error):
                raise
            continue
        fitting.append(config)
    torch.cuda.synchronize()
    return fitting


def _seconds(config: Config, run: Callable[[Config], object]) -> float:
    """Of one launch; a captured graph, as launching from here may take longer than computing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=recording_stream()):
        for _ in range(REPEATS):
            run(config)
    graph.replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000 / REPEATS


@cache
def _file(device: int) -> Path:
    folder = os.environ.get("FASTMTT_CACHE") or Path.home() / ".cache" / "fastmtt"
    name = torch.cuda.get_device_name(device).replace(" ", "_")
    return Path(folder) / "tuning" / f"{name}_triton{triton.__version__}.json"


def _choices() -> dict[str, str]:
    return _kept(_file(torch.cuda.current_device()))


@cache
def _kept(file: Path) -> dict[str, str]:
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):  # none yet, or a damaged one: measuring anew costs seconds
        return {}
    return {k: v for k, v in kept.items() if isinstance(v, str)} if isinstance(kept, dict) else {}


def _save(choices: Mapping[str, str]) -> None:
    path = _file(torch.cuda.current_device())
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(choices, indent=1, sort_keys=True))
    draft.replace(path)
