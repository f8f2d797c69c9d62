"""On a GPU the kernels run compiled, each in the first configuration that fits, in float32."""

from contextlib import suppress

import pytest
import torch
from fastmtt.kernels import tuning
from triton.runtime.errors import OutOfResources


def first_that_fits(name, configs, run):
    """What the interpreter would take, if the GPU has room for it: the others cost minutes."""
    for config in configs:
        with suppress(OutOfResources):
            run(config)
            return config
    pytest.fail(f"no configuration of {name} fits this GPU")


@pytest.fixture(autouse=True)
def untuned_float32(monkeypatch):
    """Tolerances are float32's; nothing here is the choice of later runs."""
    if torch.cuda.is_available():
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(tuning, "_fastest", first_that_fits)
        monkeypatch.setattr(tuning, "_save", lambda choices: None)
