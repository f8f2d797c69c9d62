"""Scores of networks that are done, kept on disk until the evaluation they belong to is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import UserDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.evaluation import Scores
from fastmtt.files import one_line, replacing
from fastmtt.progress import say

KIND = "fastmtt evaluation 4"
_PART = 4096  # images hashed at a time


class KeptScores(UserDict[str, Scores]):
    """Scores by the name of what was trained; each assignment is on disk when it returns.

    Args:
        folder: Where the file `evaluation_{digest}.json` lies.
        digest: Of everything that determines the scores; see :func:`digest_of`.
        resume: Take up what a killed evaluation left; otherwise it is removed.

    Raises:
        FastmttError: The folder cannot be written to, or the file that is there is no such file.
    """

    def __init__(self, folder: Path, digest: str, *, resume: bool) -> None:
        super().__init__()
        self.path = folder / f"evaluation_{digest[:16]}.json"
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise FastmttError(
                f"{folder} cannot be written to ({error.strerror}), and results go there; copy it "
                "to where they can be written"
            ) from None
        if resume:
            self._take_up()
        elif self.path.exists():
            say(f"{self.path}: left by a killed evaluation, removed; --resume would go on from it")
            self.path.unlink()

    def __setitem__(self, name: str, scores: Scores) -> None:
        self.data[name] = scores
        rows = {
            key: [value.tolist() if isinstance(value, Tensor) else value for value in some]
            for key, some in self.data.items()
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({"format": KIND, "scores": rows}), encoding="utf-8")

    def remove(self) -> None:
        """Remove the file: the evaluation is done."""
        self.path.unlink(missing_ok=True)

    def _take_up(self) -> None:
        if not self.path.exists():
            say(f"{self.path.parent}: nothing is left of such an evaluation; it starts anew")
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != KIND:
                raise ValueError(f"its format is {content['format']!r}")
            self.data = {name: _scores(*row) for name, row in content["scores"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FastmttError(
                f"{self.path} is no unfinished evaluation of ours ({one_line(error)}); remove it"
            ) from None
        networks = sum(len(scores.test) for scores in self.data.values())
        say(f"{self.path}: {networks} networks are done already")


def digest_of(settings: Mapping[str, Any], tensors: Iterable[Any]) -> str:
    """Give a digest of an evaluation's settings and of all it trains and tests on.

    Args:
        settings: Values JSON has words for.
        tensors: Tensors, or images that are split into some.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(f"{list(tensor.shape)} {tensor.dtype}".encode())
        for part in tensor.split(_PART) if len(tensor.shape) else (tensor,):
            digest.update(part.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def _scores(
    test: list[float],
    held_out: list[float] | None,
    seconds: float,
    best: list[float] | None,
    earlier: list[list[float]] | None,
) -> Scores:
    tests, held, bests, stages = (
        None if row is None else torch.tensor(row, dtype=torch.float64)
        for row in (test, held_out, best, earlier)
    )
    if tests is None or tests.dim() != 1:
        raise ValueError("its scores are no lists of numbers")
    return Scores(tests, held, float(seconds), bests, stages)
