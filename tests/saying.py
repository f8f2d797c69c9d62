"""What reading a configuration says."""

import warnings
from typing import Any

from fastmtt.config import parse


def said(command: Any, argv: list[str]) -> tuple[Any, list[str]]:
    """The configuration and the warnings' texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = parse(command, argv)
    return config, [str(warning.message) for warning in caught]
