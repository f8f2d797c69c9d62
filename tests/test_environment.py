"""What a run records of its command."""

import runpy
import sys


def test_the_command_is_kept_as_it_was_typed(tmp_path, monkeypatch, capsys):
    """By what `python -m shown` and `python shown.py` run a module and a script with."""
    script = tmp_path / "shown.py"
    script.write_text(
        "from fastmtt.environment import environment\nprint(environment()['command'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["-m", "--flag"])
    runpy.run_module("shown", run_name="__main__", alter_sys=True)
    assert capsys.readouterr().out.strip() == str(["python", "-m", "shown", "--flag"])
    monkeypatch.setattr(sys, "argv", ["shown.py", "--flag"])
    runpy.run_path("shown.py", run_name="__main__")
    assert capsys.readouterr().out.strip() == str(["shown.py", "--flag"])
