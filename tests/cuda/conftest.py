"""The ops of csrc/cuda: on a GPU as built, elsewhere on the host, thread after thread."""

import pytest
import torch
from compiling import declare_on_host, load_on_host

from fastmtt.ops import backends


@pytest.fixture(scope="session")
def cuda_ops(extension):
    """The ops by name, each with the overloads ``default`` and ``into``."""
    if torch.cuda.is_available():
        if (error := backends.cuda_error()) is not None:
            pytest.skip(error)
        yield torch.ops.fastmtt
    else:
        declared = declare_on_host()
        yield load_on_host()
        del declared


@pytest.fixture(scope="session")
def run(cuda_ops):
    """run(op, *args, into=None), as the functions of ``fastmtt.kernels``."""

    def run(op, *args, into=None):
        packet = getattr(cuda_ops, op)
        if into is None:
            return packet.default(*args)
        count = len(packet.default._schema.returns)
        packet.into(*args, *into[:count])
        return into[0] if count == 1 else tuple(into[:count])

    return run
