"""setup.py as a module: what the tests of the build and of compiled kernels read of it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def load_setup() -> ModuleType:
    """A fresh copy of it."""
    spec = importlib.util.spec_from_file_location("fastmtt_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
