"""Files of `torch.save`, read without running what may be in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtt.errors import FastmttError
from fastmtt.files import one_line

_LONG = 120  # characters of a reason that help; torch's own advice follows them


def read_pickle(path: Path, wanted: str, *, mapped: bool = False) -> Any:
    """Read a file of `torch.save` onto the CPU: tensors, numbers and containers, nothing else.

    Args:
        path: The file.
        wanted: What it should hold, for the message.
        mapped: Leave the tensors on the mapped file; only the zip format can.

    Raises:
        FastmttError: The file is missing, damaged, foreign, or holds code or other objects; or a
            tensor in it is sparse or larger than the file.
    """
    try:
        if mapped and not _is_zip(path):
            raise FastmttError(
                f"{path} is damaged or no zip file as torch.save has written since PyTorch 1.6, "
                f"and only those can be read in place; wanted {wanted}, saved anew or put back "
                "whole"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        size = path.stat().st_size
    except FastmttError:
        raise
    except OSError as error:
        raise FastmttError(
            f"{path} cannot be read ({error.strerror or one_line(error)}); wanted {wanted}"
        ) from None
    except pickle.UnpicklingError as error:
        raise FastmttError(
            f"{path} holds something else than plain tensors, or is damaged ({_reason(error)}); "
            f"nothing in it was run; wanted {wanted}"
        ) from None
    except Exception as error:  # a damaged pickle fails with whatever its bytes happen to call for
        raise FastmttError(
            f"{path} is damaged or no file of torch.save ({_reason(error)}); wanted {wanted}"
        ) from None
    for tensor in _tensors(content):
        odd = tensor.layout != torch.strided or tensor.is_quantized
        if odd or tensor.nbytes > size:
            raise FastmttError(
                f"{path} holds a tensor {list(tensor.shape)} that is sparse, quantized or larger "
                f"than the file; wanted {wanted}"
            )
    return content


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _reason(error: Exception) -> str:
    """Give the part of torch's message that says what is wrong, not what to do instead."""
    text = one_line(error)
    for mark in ("Trying to", "Unsupported", "WeightsUnpickler error:"):
        text = text[text.find(mark) :] if mark in text else text
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        yield from _tensors(list(content.values()))
    elif isinstance(content, list | tuple):
        for part in content:
            yield from _tensors(part)
