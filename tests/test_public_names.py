"""The public names and arguments: whoever changes one changes it here, on purpose."""

import ast
import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import fastmtt
from fastmtt import compat

NAMES = [
    "DSA",
    "FastmttError",
    "TrajectoryMatcher",
    "compat",
    "match_trajectory",
    "unroll_sgd",
]
OPTIONS = ["gradient", "loss_fn", "augment", "keep", "precision", "memory", "backend"]
ARGUMENTS = {
    "match_trajectory": (
        ["student", "start", "target", "images", "labels", "lr"],
        ["steps", "batch_size", *OPTIONS[:4], "indices", "generator", *OPTIONS[4:]],
    ),
    "TrajectoryMatcher": (["student"], ["steps", "batch_size", *OPTIONS]),
    "TrajectoryMatcher.forward": (
        ["self", "start", "target", "images", "labels", "lr"],
        ["indices", "generator", "draws"],
    ),
    "unroll_sgd": (
        ["student", "theta", "batches", "lr"],
        ["loss_fn", "gradient", "at", "precision", "memory", "backend"],
    ),
    "compat.ReparamModule": (["module"], []),
    "compat.ReparamModule.forward": (["self", "inputs"], ["flat_param", "buffers"]),
}


def member(path):
    found = fastmtt
    for name in path.split("."):
        found = getattr(found, name)
    return found


def test_names():
    assert fastmtt.__all__ == NAMES
    assert compat.__all__ == ["ReparamModule"]
    public = {name for name in vars(fastmtt) if not name.startswith("_")}
    modules = {name for name in public if inspect.ismodule(vars(fastmtt)[name])}
    assert public - modules == set(NAMES) - {"compat"}


@pytest.mark.parametrize("path", ARGUMENTS)
def test_arguments(path):
    """Those of the interface, in order; an option may come in between."""
    parameters = inspect.signature(member(path)).parameters.values()
    plain = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert plain == ARGUMENTS[path][0]
    assert [name for name in options if name in ARGUMENTS[path][1]] == ARGUMENTS[path][1]
    defaults = [p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "steps"]
    assert all(default is not inspect.Parameter.empty for default in defaults)


def test_the_example_of_help_runs():
    found = doctest.DocTestFinder(recurse=False).find(fastmtt, "fastmtt")
    (test,) = [t for t in found if t.examples]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ran = doctest.DocTestRunner().run(test)
    assert ran.attempted >= 8 and ran.failed == 0


def test_help_names_everything_public():
    assert all(f"`{name}" in fastmtt.__doc__ for name in NAMES)


@pytest.mark.parametrize("path", [*ARGUMENTS, "DSA", "FastmttError"])
def test_docstrings_tell_every_argument(path):
    found = member(path)
    text = inspect.getdoc(found) + (
        inspect.getdoc(found.__init__) if inspect.isclass(found) else ""
    )
    assert len(text) > 60
    if path == "match_trajectory":  # says that they are TrajectoryMatcher's
        assert "TrajectoryMatcher" in text
    elif path in ARGUMENTS:
        wanted = {name for names in ARGUMENTS[path] for name in names} - {"self", "module"}
        assert not {name for name in wanted if f"{name}: " not in text}


def test_the_sites_page_of_the_interface_has_every_name():
    text = (Path(__file__).parents[1] / "docs/api.md").read_text()
    told = {name.split(".")[0] for name in re.findall(r"^::: fastmtt\.(\S+)$", text, re.MULTILINE)}
    assert told == set(NAMES)


def test_types_come_with_the_package():
    package = Path(fastmtt.__file__).parent
    assert (package / "py.typed").is_file()
    for stub in package.glob("*.pyi"):
        try:
            module = importlib.import_module(f"fastmtt.{stub.stem}")
        except ImportError as error:
            pytest.skip(f"the extension is not built: {error}")
        told = [n.name for n in ast.parse(stub.read_text()).body if isinstance(n, ast.FunctionDef)]
        assert told == sorted(n for n in vars(module) if not n.startswith("_"))
    assert len(list(package.glob("*.pyi"))) == 2
