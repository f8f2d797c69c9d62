"""The site's own pages: what they name is there. Links and included files, `make docs` checks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "csrc|kernels|fastmtt|tests|bench|configs|examples|docs"
NAMED = {
    (page.name, path)
    for page in (ROOT / "docs").glob("*.md")
    for path in re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", page.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize(("page", "path"), sorted(NAMED))
def test_a_path_that_is_named_is_there(page, path):
    assert (ROOT / path).exists(), f"docs/{page} names {path}"


def test_paths_are_found():
    assert ("how-it-is-built.md", "fastmtt/sweeps.py") in NAMED
