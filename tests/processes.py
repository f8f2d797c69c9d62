"""How a test starts another process that uses the package."""

import multiprocessing

import torch

# A fork is ready at once, but cannot use a GPU that its parent has used.
apart = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
