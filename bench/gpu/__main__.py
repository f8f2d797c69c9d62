"""The benchmarks on a GPU: `bench/gpu.sh OUTDIR`, which installs and comes here."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.gpu import (
    ceilings,
    gains,
    launches,
    matching,
    passes,
    pieces,
    processes,
    real,
    suite,
    training,
    vectors,
)
from bench.gpu import device as dev
from bench.gpu.results import Results, Row
from bench.gpu.warm import warm

# Each section's share of the time; what one leaves over goes to the later ones.
SHARES = {"tests": 60, "ops": 150, "match": 220, "buffer": 45, "eval": 35, "real": 500}
ALL = ("tests", "ops", "match", "buffer", "eval")  # without the one that needs minutes by itself
LIMIT = 500.0  # seconds; what installs comes before
WARMING = 80.0
# shares of section ops
VECTORS, PASSES, LAUNCHES, GAINS, SANITIZING = 0.15, 0.15, 0.15, 0.15, 0.2
LEAST = 12.0  # seconds of a contender; a process takes some to begin


class Bench:
    """The sections, as methods of the time they may take; each yields rows."""

    def __init__(self, arguments: argparse.Namespace, results: Results) -> None:
        self.arguments, self.results = arguments, results
        self._warmed: set[str] = set()

    def tests(self, seconds: float) -> Iterator[Row]:
        """The tests that need a GPU."""
        yield from suite.run(self.results.folder, seconds)

    def ops(self, seconds: float) -> Iterator[Row]:
        """Ceilings, all ops, single kernels, launches, what was chosen; CUDA's sanitizers."""
        end = time.monotonic() + seconds
        yield from self._ready(end)
        yield from processes.run(vectors.measure, VECTORS * seconds, peaks=self._peaks())
        yield from processes.run(launches.measure, LAUNCHES * seconds)
        yield from processes.run(gains.measure, GAINS * seconds)
        layers = ["16x16", "8x8", "32x32x3"]  # by what they cost a step
        given = {"layers": layers, "peaks": self._peaks()}
        yield from processes.run(passes.measure, PASSES * seconds, **given)
        end -= SANITIZING * seconds
        for precision in sorted(dev.PRECISIONS, key=dev.FASTEST.__ne__):
            if (left := end - time.monotonic()) > 0:
                given = {"layers": layers, "precisions": [precision], "peaks": self._peaks()}
                yield from processes.run(pieces.measure_with_ops, left, **given)
        yield from _choices()
        yield from suite.sanitize(self.results.folder, SANITIZING * seconds / 2)

    def match(self, seconds: float) -> Iterator[Row]:
        """A matching iteration by every contender."""
        end = time.monotonic() + seconds
        with TemporaryDirectory() as folder:
            for name, precision, most in matching.schedule():
                row = {"contender": name, "precision": precision}
                if end - time.monotonic() < LEAST:
                    yield {**row, "failed": "no time left for it"}
                    continue
                yield from self._ready(end, (precision,))
                peaks = self._peaks()
                environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
                given = {"name": name, "precision": precision, "folder": folder}
                rows = processes.run(
                    matching.measure,
                    min(most, end - time.monotonic()),
                    environment,
                    peak=peaks.get(precision, float("nan")),
                    **given,
                )
                yield from ({**row, **found} for found in rows)

    def buffer(self, seconds: float) -> Iterator[Row]:
        """Experts."""
        yield from processes.run(training.buffer, seconds, archive=self._archive())

    def eval(self, seconds: float) -> Iterator[Row]:
        """Evaluation networks."""
        yield from processes.run(training.evaluation, seconds, archive=self._archive())

    def real(self, seconds: float) -> Iterator[Row]:
        """A whole distillation, or as much of it as fits."""
        a = self.arguments
        if a.images is None:
            yield {"failed": "real images are needed: --images ARCHIVE"}
            return
        plan = real.Plan(a.images, a.folder, a.experts, a.epochs, a.iterations, tuple(a.more))
        yield from real.run(plan, self.results.folder / "real.log", seconds)

    def _archive(self) -> str | None:
        images = self.arguments.images
        return None if images is None else str(images.resolve())

    def _ready(self, end: float, precisions: Sequence[str] = dev.PRECISIONS) -> Iterator[Row]:
        """Measure the ceilings and compile, each once."""
        if not self._peaks():
            yield from processes.run(ceilings.measure, max(end - time.monotonic(), 1))
        if missing := [name for name in precisions if name not in self._warmed]:
            self._warmed.update(missing)
            yield from warm(min(WARMING, max(end - time.monotonic(), 1) / 2), missing)

    def _peaks(self) -> dict[str, float]:
        return ceilings.by_precision(self.results.rows)


def _choices() -> Iterator[Row]:
    """The tuner's choices for this device, by kernel and size."""
    if dev.ON_GPU:
        from fastmtt.kernels import tuning

        for kernel, config in sorted(tuning._choices().items()):
            yield {"table": "chosen", "kernel": kernel, "configuration": config}


def main(argv: list[str] | None = None) -> int:
    """Run the sections within the limit; 1 where something failed that should not."""
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=__doc__.partition(":")[0])
    parser.add_argument("folder_of_results", metavar="OUTDIR", type=Path)
    parser.add_argument("--only", choices=SHARES, help="one section; all but real where not given")
    parser.add_argument("--images", type=Path, help="CIFAR-10 as an .npz of JPEG files")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds, of all sections")
    group = parser.add_argument_group("section real")
    group.add_argument("--folder", type=Path, default=Path("build/real"), help="to go on in")
    group.add_argument("--experts", type=int, default=100)
    group.add_argument("--epochs", type=int, default=21, help="of each expert")
    group.add_argument("--iterations", type=int, default=5000)
    group.add_argument("more", nargs="*", help="after --: further flags of fastmtt.distill")
    given = sys.argv[1:] if argv is None else argv
    dashes = given.index("--") if "--" in given else len(given)
    # cut by hand: argparse takes what follows only where no option stands before it
    arguments = parser.parse_args(given[:dashes])
    arguments.more = given[dashes + 1 :]
    if arguments.images is not None and not arguments.images.is_file():
        parser.error(f"--images: there is no file {arguments.images}")

    begin = time.monotonic()
    results = Results(arguments.folder_of_results, dev.facts())
    bench = Bench(arguments, results)
    sections = [arguments.only] if arguments.only else list(ALL)
    try:
        for place, section in enumerate(sections):
            left = begin + arguments.limit - time.monotonic()
            part = SHARES[section] / sum(SHARES[later] for later in sections[place:])
            run: Callable[[float], Iterator[Row]] = getattr(bench, section)
            started = time.monotonic()
            for row in run(left * part):
                results.add(section, row)
            print(f"[{section}] took {time.monotonic() - started:.0f} s", flush=True)
    finally:  # an interrupt leaves its table too
        print("\n" + results.finish(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
