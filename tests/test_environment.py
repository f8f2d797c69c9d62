"""What a run records of its command."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_command_is_kept_as_it_was_typed(tmp_path):
    (tmp_path / "shown.py").write_text(
        "from fastmtt.environment import environment\nprint(environment()['command'])\n"
    )
    root = str(Path(__file__).parents[1])
    for typed, kept in ((["-m", "shown"], ["python", "-m", "shown"]), (["shown.py"], ["shown.py"])):
        shown = subprocess.run(
            [sys.executable, *typed, "--flag"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout.strip() == str([*kept, "--flag"])
