"""How a command ends."""

import multiprocessing
import os
import signal
import sys
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from fastmtt.command import command
from fastmtt.errors import FastmttError


def ending(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    """Exit code and stderr of a command that raises."""

    @command
    def main(argv: list[str] | None = None) -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        main([])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return left.value.code, captured.err


def test_a_users_mistake_is_one_sentence_and_code_2(capsys):
    assert ending(capsys, FastmttError("got 1, wanted 2")) == (2, "fastmtt: got 1, wanted 2\n")


def test_the_system_s_errors_name_the_file(capsys):
    code, said = ending(capsys, PermissionError(13, "Permission denied", "/some/file"))
    assert (code, said) == (2, "fastmtt: /some/file: Permission denied\n")
    code, said = ending(capsys, OSError(28, "No space left on device", "/some/file"))
    assert code == 2 and "/some/file cannot be written (No space left on device)" in said
    assert "make room and give the command again; with --resume buffer, distill" in said
    assert "Input/output error" in ending(capsys, OSError(5, "Input/output error"))[1]


def test_want_of_memory_says_how_much(capsys):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)
    code, said = ending(capsys, caught.value)
    assert code == 2 and "out of memory (1048576.00 GiB more were wanted); lower batch_syn" in said
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has ...")
    assert "(20.50 GiB more were wanted)" in ending(capsys, gpu)[1]
    assert "out of memory; lower" in ending(capsys, MemoryError())[1]


def test_a_fault_of_ours_keeps_its_traceback():
    @command
    def main(argv: list[str] | None = None) -> None:
        """Do it."""
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main([])
    assert main.__doc__ == "Do it."


def test_warnings_are_a_line_within_a_command_only():
    usual = warnings.formatwarning

    @command
    def main(argv: list[str] | None = None) -> None:
        text = warnings.formatwarning("zca twice", UserWarning, "file.py", 7)
        assert text == "warning: zca twice\n"

    main([])
    assert warnings.formatwarning is usual


def sleep(told: Connection, errors: Path) -> None:
    # a shell starts background jobs with Ctrl-C ignored, which children inherit
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stderr = errors.open("w")

    @command
    def main(argv: list[str] | None = None) -> None:
        told.send("running")
        time.sleep(60)

    main([])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_their_code(number, code, tmp_path):
    here, there = multiprocessing.Pipe()
    errors = tmp_path / "errors"
    process = multiprocessing.get_context("fork").Process(target=sleep, args=(there, errors))
    process.start()
    try:
        assert here.poll(60) and here.recv() == "running"
        os.kill(process.pid, number)
        process.join(30)
    finally:
        process.kill()
    assert process.exitcode == code
    said = errors.read_text()
    assert said.startswith(f"fastmtt: ended by {number.name}; with --resume buffer, distill,")


def test_usual_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)

    @command
    def main(argv: list[str] | None = None) -> None:
        assert signal.getsignal(signal.SIGTERM) is not before
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        main([])
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
