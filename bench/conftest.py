"""The flag --benchmark, the smoke size and the tables at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bench.report import Report

REPORT = pytest.StashKey[Report]()
SIZES = ("full", "smoke")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--benchmark", action="store_true", help="run the benchmarks: pytest bench/ --benchmark"
    )


def pytest_configure(config: pytest.Config) -> None:
    size = os.environ.get("FASTMTT_BENCH") or "full"
    if size not in SIZES:
        raise pytest.UsageError(f"FASTMTT_BENCH must be one of {', '.join(SIZES)}, got {size!r}")
    config.stash[REPORT] = Report(smoke=size == "smoke")
    if size == "smoke":
        # tiny operations on several threads wait for one another for as long as others keep the
        # machine busy; the variable is for the contenders' processes
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--benchmark"):
        return
    skip = pytest.mark.skip(reason="a benchmark; to run it: pytest bench/ --benchmark")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module's SIZES, or its SMOKE_SIZES, become the parameter ``size``."""
    if "size" in metafunc.fixturenames:
        smoke = metafunc.config.stash[REPORT].smoke
        sizes = metafunc.module.SMOKE_SIZES if smoke else metafunc.module.SIZES
        metafunc.parametrize("size", sizes, ids=str)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    report = config.stash[REPORT]
    if report.tables:
        terminalreporter.section("fastmtt benchmarks")
        terminalreporter.line(report.text())


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]
