"""Half-trained experts are kept, gone on with, and refused where they do not fit."""

import pytest
import torch

from fastmtt.errors import FastmttError
from fastmtt.experts import unfinished
from fastmtt.experts.store import TrajectoryStore
from fastmtt.experts.unfinished import Unfinished

META = {"names": ["w"], "shapes": [[5]], "network": "N", "dataset": "d", "space": {}}


@pytest.fixture
def store(tmp_path):
    return TrajectoryStore(tmp_path, {**META, "recipe": {"lr": 0.1}})


@pytest.mark.parametrize("velocity", [None, torch.randn(5)])
def test_what_is_saved_comes_back(store, velocity):
    snapshots = list(torch.randn(3, 5))
    assert unfinished.load(store, 7, 5) is None
    unfinished.save(store, 7, Unfinished(snapshots, velocity), {"versions": {}})
    back = unfinished.load(store, 7, 5)
    assert back.epochs == 2 and torch.equal(torch.stack(back.snapshots), torch.stack(snapshots))
    assert back.velocity is velocity or torch.equal(back.velocity, velocity)
    assert store.indices() == []  # it counts as no expert
    unfinished.discard(store, 7)
    assert unfinished.load(store, 7, 5) is None and not list(store.root.iterdir())


def test_another_recipe_or_network_is_refused(store, tmp_path):
    unfinished.save(store, 0, Unfinished([torch.zeros(5)], None), {})
    other = TrajectoryStore(tmp_path, {**META, "recipe": {"lr": 0.2}})
    with pytest.raises(FastmttError, match="half-trained otherwise: its recipe.lr is 0.1, wanted"):
        unfinished.load(other, 0, 5)
    with pytest.raises(FastmttError, match=r"wanted float32 rows \[epochs \+ 1, 6\]"):
        unfinished.load(store, 0, 6)
    unfinished.save(store, 0, Unfinished([torch.zeros(5)], torch.zeros(4)), {})
    with pytest.raises(FastmttError, match="its velocity has 4 weights, not 5"):
        unfinished.load(store, 0, 5)
