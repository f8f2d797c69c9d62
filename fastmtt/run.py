"""Everything of a distillation in one folder, which one process at a time writes to."""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fastmtt.config import parse, to_yaml
from fastmtt.environment import environment
from fastmtt.errors import FastmttError
from fastmtt.files import (
    open_safetensors,
    read_safetensors,
    replacing,
    sole_user,
    write_pt,
    write_safetensors,
)
from fastmtt.loggers import Logger, Nobody
from fastmtt.options import DistillConfig
from fastmtt.pictures import save_image_grid
from fastmtt.progress import say

KIND = "fastmtt run 1"
_CHECKPOINT = "checkpoint.safetensors"
# What may change when a run goes on: where things lie, what it tells, how long it runs, and what
# changes no bit.
_FREE = {
    *("data_path", "download", "buffer_path", "save_path", "run_name", "resume"),
    *("logger", "project", "published", "Iteration", "memory"),
}
State = tuple[dict[str, Tensor], dict[str, Any]]


class RunFolder:
    """One run's folder: `{save_path}/{dataset}/{ipc}/{model}/{run_name}`.

    Args:
        path: The folder; `open_run` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logger: Logger = Nobody()

    def log(self, text: str) -> None:
        """Write a line to stderr and, with the time, to `log.txt`."""
        say(text)
        with open(self.path / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def log_metrics(self, record: Mapping[str, Any]) -> None:
        """Append the record of an outer iteration to `metrics.jsonl`, and tell the logger."""
        append_metrics(self.path, [record])
        self.logger.scalars(record["iteration"], {k: record[k] for k in record if k != "iteration"})

    def forget_metrics(self, iteration: int, *, evaluated: bool) -> None:
        """Drop the records of `iteration` and later ones, which a resumed run writes again.

        Args:
            iteration: The first outer iteration to come.
            evaluated: Whether the evaluation before it is done; its record stays then.
        """
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        done = iteration if evaluated else None
        kept = [
            record
            for record in read_metrics(self.path)
            if "iteration" not in record
            or (isinstance(record["iteration"], int) and record["iteration"] < iteration)
            or (record["iteration"] == done and "accuracy" in record)
        ]
        with replacing(file) as temporary:
            temporary.write_text("".join(map(_line, kept)), encoding="utf-8")

    def save_checkpoint(self, state: State) -> None:
        """Write what a resumed run starts from: tensors and JSON-able values, atomically."""
        write_safetensors(self.path / _CHECKPOINT, KIND, *state)

    def load_checkpoint(self) -> State | None:
        """Give what `save_checkpoint` wrote last; None where the run was killed before that.

        Raises:
            FastmttError: The checkpoint is damaged.
        """
        path = self.path / _CHECKPOINT
        return read_safetensors(path, KIND) if path.exists() else None

    def save_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file atomically."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def save_pt(self, name: str, tensor: Tensor) -> None:
        """Write one tensor in the layout other programs read, atomically."""
        # Cloned: of a view, torch.save would write all it looks into.
        write_pt(self.path / name, tensor.detach().cpu().clone())

    def keep_as(self, name: str, path: Path) -> None:
        """Copy a file of the run's under another name, once, atomically."""
        if not path.exists():
            with replacing(path) as temporary:
                shutil.copyfile(self.path / name, temporary)

    def save_image_grid(self, name: str, pixels: Tensor) -> None:
        """Write a picture of images [n,C,H,W] in pixel space."""
        save_image_grid(self.path / name, pixels)


def settle(config: DistillConfig) -> DistillConfig:
    """Give the configuration with its run's name, having checked that its folder can be used.

    A new run without `run_name` is named by its method and the time; with `resume`, the one
    unfinished run of the same configuration is found.

    Raises:
        FastmttError: The folder holds a run and `resume` is not set, a run of another
            configuration, or no run of ours; or several runs could be meant.
    """
    if config.run_name is None:
        config = dataclasses.replace(config, run_name=_unfinished(config) or _new_name(config))
    _check_usable(_path(config), config)
    return config


@contextmanager
def open_run(config: DistillConfig) -> Iterator[RunFolder]:
    """Make the folder of a settled configuration, or take it up again, and hold it.

    Written at once: `config.yaml`, which `--cfg` reads back, and `environment.json`.

    Raises:
        FastmttError: As `settle`; or another process holds the folder, or it cannot be made.
    """
    path = _path(config)
    busy = f"another process runs into {path}; wait for its end or choose another run_name"
    with ExitStack() as held:
        try:
            held.enter_context(sole_user(path, busy))
            _check_usable(path, config)
            with replacing(path / "config.yaml") as temporary:
                temporary.write_text(
                    to_yaml(dataclasses.replace(config, resume=False)), encoding="utf-8"
                )
            run = RunFolder(path)
            run.save_json("environment.json", environment())
            (path / "summary.json").unlink(missing_ok=True)  # unfinished, from here on
        except OSError as error:
            raise FastmttError(
                f"{path} cannot be made a run's folder ({error.strerror}); choose another "
                "save_path or run_name"
            ) from None
        yield run


def append_metrics(folder: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records to a folder's `metrics.jsonl`, one JSON line each; NaN becomes null."""
    with open(folder / "metrics.jsonl", "a+b") as file:
        if file.tell() and _last_byte(file) != b"\n":  # a kill cut the last line short
            file.write(b"\n")
        file.write("".join(map(_line, records)).encode())


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Give the records of a folder's `metrics.jsonl` but for lines that are none, or cut short."""
    records = []
    for line in (folder / "metrics.jsonl").read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _last_byte(file: BinaryIO) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _line(record: Mapping[str, Any]) -> str:
    finite = {key: _finite(value) for key, value in record.items()}
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _path(config: DistillConfig) -> Path:
    return _parent(config) / str(config.run_name)


def _parent(config: DistillConfig) -> Path:
    return Path(config.save_path, config.dataset, str(config.ipc), config.model)


def _new_name(config: DistillConfig) -> str:
    return f"{config.method}_{time.strftime('%Y%m%d-%H%M%S')}"


def _unfinished(config: DistillConfig) -> str | None:
    """Name the one run that `resume` without a name can mean; None: there is none, or no resume."""
    if not config.resume:
        return None
    folders = sorted(file.parent for file in _parent(config).glob("*/config.yaml"))
    fitting = [
        folder.name
        for folder in folders
        if not (folder / "summary.json").exists() and not _difference(folder, config)
    ]
    if len(fitting) > 1:
        raise FastmttError(
            f"{len(fitting)} unfinished runs in {_parent(config)} have this configuration; name "
            f"one by run_name: {', '.join(fitting)}"
        )
    return fitting[0] if fitting else None


def _check_usable(path: Path, config: DistillConfig) -> None:
    if not path.is_dir() or all(_is_debris(file) for file in path.iterdir()):
        return
    if not config.resume:
        raise FastmttError(
            f"{path} holds a run already; add --resume to go on with it, or choose another run_name"
        )
    if not (path / "config.yaml").is_file():
        raise FastmttError(f"{path} is no run's folder: it has no config.yaml; remove it")
    difference = _difference(path, config)
    if difference:
        raise FastmttError(
            f"{path} cannot go on otherwise than it began: {difference}; leave that as it was or "
            "choose another run_name"
        )
    if (path / "summary.json").exists() and not (path / _CHECKPOINT).exists():
        raise FastmttError(
            f"{path} is finished, but its checkpoint is gone, so that it could only begin anew; "
            "choose another run_name"
        )
    done = _iterations_done(path)
    if done > config.Iteration + 1:
        raise FastmttError(
            f"Iteration is {config.Iteration}, but {path} has done iteration {done - 1} already; "
            "give that or a larger one"
        )


def _is_debris(file: Path) -> bool:
    """Whether a killed writer left it; the next one removes it."""
    return file.name.startswith(".") and file.name.endswith(".tmp")


def _iterations_done(folder: Path) -> int:
    checkpoint = folder / _CHECKPOINT
    if not checkpoint.exists():
        return 0
    with open_safetensors(checkpoint, KIND) as (_, metadata):
        done = metadata.get("iteration")
        return done if isinstance(done, int) else 0


def _difference(folder: Path, config: DistillConfig) -> str:
    """Say which key that must not change differs from the run's own."""
    began = parse("distill", ["--cfg", str(folder / "config.yaml")])
    for field in dataclasses.fields(config):
        then, now = getattr(began, field.name), getattr(config, field.name)
        free = field.name in _FREE and not (field.name == "Iteration" and config.num_intervals > 1)
        if not free and then != now:
            return f"{field.name} was {then}, now it is {now}"
    return ""
