"""The tuner's choices: what is kept, and what is measured anew."""

import pytest
import torch
from fastmtt.kernels import tuning
from fastmtt.kernels.tuning import Config, choose

SMALL, LARGE, OTHER = (Config({"M": size}) for size in (16, 32, 64))


@pytest.fixture
def measured(monkeypatch):
    """Lists of the configurations that were measured; the last of each is the fastest."""
    lists, kept = [], {}

    def fastest(name, configs, run):
        lists.append(list(configs))
        return configs[-1]

    monkeypatch.setattr(tuning, "interpreting", False)
    monkeypatch.setattr(tuning, "_choices", lambda: kept)
    monkeypatch.setattr(tuning, "_save", lambda chosen: None)
    monkeypatch.setattr(tuning, "_fastest", fastest)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return lists


def test_a_size_is_measured_once(measured):
    assert choose("k", (1, 2), [SMALL, LARGE], print) == LARGE
    assert choose("k", (1, 2), [SMALL, LARGE], print) == LARGE
    assert choose("k", (1, 3), [SMALL, LARGE], print) == LARGE
    assert measured == [[SMALL, LARGE]] * 2


def test_further_candidates_are_measured_with_those_kept(measured):
    choose("k", (), [SMALL, LARGE], print)
    assert choose("k", (), [SMALL, LARGE, OTHER], print) == OTHER
    assert choose("k", (), [SMALL, LARGE], print) == LARGE
    assert measured == [[SMALL, LARGE], [SMALL, LARGE, OTHER]]


def test_a_candidate_without_room_is_left_out_and_one_that_fails_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def run(config):
        if config == LARGE:
            raise RuntimeError("CUDA error: too many resources requested for launch")
        if config == OTHER:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert tuning._fitting([SMALL, LARGE], run) == [SMALL]
    with pytest.raises(RuntimeError, match="illegal memory"):
        tuning._fitting([SMALL, OTHER], run)
