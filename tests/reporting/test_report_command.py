"""`python -m fastmtt.report`: where it writes, what it refuses."""

import pytest
from run_maker import make_run

from fastmtt import report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", zca=False)


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as ending:
        report.main([str(argument) for argument in arguments])
    assert ending.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("fastmtt: ") and "\n" not in said
    return said


def test_one_run_keeps_its_report(run, capsys):
    report.main([str(run)])
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert str(run / "report.html") in capsys.readouterr().err
    report.main([str(run)])  # again: it takes the old one's place
    (run / "report.html").unlink()


def test_several_runs_are_reported_here(run, tmp_path, monkeypatch):
    other = make_run(tmp_path / "other", zca=False)
    monkeypatch.chdir(tmp_path)
    report.main([str(run), "other"])
    assert "2 runs compared" in (tmp_path / "report.html").read_text()
    report.main([str(other), "other", "--out", "deep/one.html"])  # the same run twice is one
    assert "runs compared" not in (tmp_path / "deep" / "one.html").read_text()


def test_mistakes(run, tmp_path, capsys):
    assert "RUN" in refused(capsys)
    assert "--ouy" in refused(capsys, run, "--ouy", "x")
    assert "no run" in refused(capsys, tmp_path / "nowhere")
    assert "no run" in refused(capsys, tmp_path)
    assert "wanted the name of a file" in refused(capsys, run, "--out", tmp_path)


def test_damage_leaves_the_old_report(tmp_path, capsys):
    run = make_run(tmp_path / "run", zca=False)
    report.main([str(run)])
    before = (run / "report.html").read_bytes()
    (run / "images_000010.png").write_bytes(b"no picture")
    capsys.readouterr()
    assert "images_000010.png" in refused(capsys, run)
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*"))


def test_help(capsys):
    with pytest.raises(SystemExit) as ending:
        report.main(["--help"])
    assert ending.value.code == 0
    assert "--out FILE.html" in capsys.readouterr().out
