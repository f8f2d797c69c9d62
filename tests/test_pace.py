"""When a long computation saves."""

import time

import pytest

from fastmtt.errors import FastmttError
from fastmtt.pace import Pace


def test_due_a_minute_after_the_start_and_after_each_save(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    assert not pace.due
    now += 60
    assert pace.due
    with pace.saving():
        now += 1
    now += 59
    assert not pace.due
    now += 1
    assert pace.due


def test_slow_saving_takes_a_twentieth_of_the_time(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    with pace.saving():
        now += 10
    now += 199
    assert not pace.due
    now += 1
    assert pace.due


def test_the_interval_can_be_set(monkeypatch):
    monkeypatch.setenv("FASTMTT_CHECKPOINT_SECONDS", "0")
    assert Pace().due
    monkeypatch.setenv("FASTMTT_CHECKPOINT_SECONDS", "soon")
    with pytest.raises(FastmttError, match="FASTMTT_CHECKPOINT_SECONDS is 'soon', wanted a number"):
        Pace()
