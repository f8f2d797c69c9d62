"""What a CUDA graph could not hold, found without a GPU: looks on the host, tensors that move."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmtt.capture import Captured

LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
LOOKS |= {"unique_dim", "bincount", "_to_copy", "_pin_memory"}  # a copy elsewhere waits or is moved
METHODS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
METHODS |= {"pin_memory", "cuda", "__array__"}


class Moved(AssertionError):
    """A recorded function reads memory that is another one at the next call."""


class _NoMethods(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        assert name not in METHODS, f"Tensor.{name} looks on the host"
        return function(*args, **(kwargs or {}))


class _Watch(TorchDispatchMode):
    """Collects what memory is read that was not made within."""

    def __init__(self):
        super().__init__()
        self.made, self.outside = {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        devices = {"dtype"} >= {k for k, v in (kwargs or {}).items() if v is not None}
        assert name not in LOOKS or (name == "_to_copy" and devices), f"{name} looks on the host"
        masked = name.startswith("index") and any(t.dtype == torch.bool for t in tensors(args[1:2]))
        assert not masked, f"{name} by a mask looks on the host"
        for tensor in tensors((args, kwargs)):
            if (storage := tensor.untyped_storage()).data_ptr() not in self.made:
                self.outside.add((storage.data_ptr(), storage.nbytes()))
        found = function(*args, **(kwargs or {}))
        for tensor in tensors(found):
            storage = tensor.untyped_storage()
            if (storage.data_ptr(), storage.nbytes()) not in self.outside:
                self.made[storage.data_ptr()] = tensor  # kept: its address is not given out again
        return found


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@contextmanager
def watched():
    """Lets nothing look on the host; gives the addresses read that were made before."""
    with _NoMethods(), _Watch() as watch:
        yield watch.outside


class Recordable(Captured):
    """A captured function that is run under watch, and from its second call on in one place."""

    made = []

    def __init__(self, graph):
        super().__init__(graph)
        self.calls, self._places = 0, None
        self.made.append(self)

    def __call__(self, function):
        with watched() as outside:
            result = function()
        self.calls += 1
        if self.calls > 1:
            self._places = self._places or outside
            if self._places != outside:
                raise Moved(f"{len(outside - self._places)} tensors of a later call lie elsewhere")
        return result
