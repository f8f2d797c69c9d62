"""Signals wait for the end of what must happen as a whole."""

import os
import signal

import pytest

from fastmtt.interrupts import Interrupted, deferred, raised


def test_a_signal_ends_what_runs():
    with pytest.raises(Interrupted) as caught, raised():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")
    assert caught.value.number == signal.SIGTERM and str(caught.value) == "SIGTERM"


def test_a_deferred_one_waits_for_the_outermost_block():
    done = []
    with pytest.raises(Interrupted) as caught, raised(), deferred():
        with deferred():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"] and caught.value.number == signal.SIGINT


def test_it_is_raised_once():
    with raised():
        with pytest.raises(Interrupted), deferred():
            os.kill(os.getpid(), signal.SIGTERM)
        with deferred():
            pass


def test_an_error_inside_is_not_hidden():
    with raised():
        with pytest.raises(ZeroDivisionError), deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError
        with pytest.raises(Interrupted), deferred():
            pass
