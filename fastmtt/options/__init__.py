"""What the commands can be told: typed keys with the field's own names, their text for --help."""

from fastmtt.options.base import BaseConfig, ExpertConfig
from fastmtt.options.buffer import BufferConfig
from fastmtt.options.distill import DistillConfig
from fastmtt.options.evaluate import EvaluateConfig
from fastmtt.options.idle import idle_keys
from fastmtt.options.scores import ScoresConfig

__all__ = [
    "BaseConfig",
    "BufferConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExpertConfig",
    "ScoresConfig",
    "idle_keys",
]
