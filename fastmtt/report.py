"""``python -m fastmtt.report RUN [RUN ...]``: one HTML page of a run, or of several compared."""

import argparse
from pathlib import Path

from fastmtt.command import Parser, command
from fastmtt.errors import FastmttError
from fastmtt.files import replacing
from fastmtt.progress import say


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m fastmtt.report",
        description="Write one self-contained HTML page: images, curves, accuracies, settings.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="A folder that fastmtt.distill wrote."
    )
    parser.add_argument(
        "--out",
        metavar="FILE.html",
        type=Path,
        help="The page (default: report.html in the run's folder; here, of several runs).",
    )
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    """Read the runs, write the page, say where it is."""
    asked = _arguments(argv)
    # Drawing takes a second to load: a mistake in the arguments is told before.
    from fastmtt.reporting.page import render
    from fastmtt.reporting.reader import read_run

    folders = list(dict.fromkeys(path.resolve() for path in asked.runs))
    out = asked.out or Path(folders[0] if len(folders) == 1 else ".", "report.html")
    if out.is_dir():
        raise FastmttError(f"--out is the folder {out}, wanted the name of a file in it")
    page = render([read_run(folder) for folder in folders])
    with replacing(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    say(f"the report is in {out}")


if __name__ == "__main__":
    main()
