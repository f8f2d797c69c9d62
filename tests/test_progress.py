"""Progress in a log file: plain lines, few of them."""

import time

import pytest

from fastmtt.progress import Meter, progress


def test_items_pass_unchanged_and_the_end_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([3, 1, 2], desc="sorting")) == [3, 1, 2]
    assert list(progress(iter("ab"), total=2)) == ["a", "b"]
    err = capsys.readouterr().err
    assert err.startswith("sorting: 100%") and "3/3" in err and "2/2" in err
    assert "\r" not in err and len(err.splitlines()) == 2


def test_lines_come_every_half_minute_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Meter(100, "distil") as meter:
        for step in range(50):
            now[0] += 2.0
            meter.step(f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # after 30, 60 and 90 seconds
    assert "15/100" in lines[0] and "00:30<02:50" in lines[0] and "loss 14" in lines[0]
    assert "30/100" in lines[1] and "01:00<02:20" in lines[1]
