"""Every method on handwritten digits: experts, distillation, evaluation (`make methods`).

Prints one table and keeps it in bench/results/methods.md. Ends with an error where a distilled set
is not clearly better than as many random real images.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from fastmtt.config import parse
from fastmtt.methods import METHODS

ROOT = Path(__file__).parents[1]
SCORES = (
    "--dataset digits --model ConvNetD2W32 --dsa_strategy crop_scale_rotate --batch_train 64 "
    "--threads 1 --networks 2 --score_epochs 5"
)
CONFIGS = {method: f"{method}/digits_*.yaml" for method in METHODS}
CONFIGS["pdd on idc"] = "pdd/idc_digits_*.yaml"


@dataclass(frozen=True)
class Row:
    """A method's line: accuracies [%] with their standard deviations, seconds of its commands."""

    method: str
    distilled: tuple[float, float]
    random: tuple[float, float]
    seconds: float

    @property
    def is_clear(self) -> bool:
        """Whether the distilled set is better by more than both deviations."""
        (mean, std), (other, spread) = self.distilled, self.random
        return mean - std > other + spread


def main() -> None:
    """Run all methods, one after the other; show and keep the table."""
    name = time.strftime("methods_%Y%m%d-%H%M%S")
    rows = [run(method, f"{name}_{method.replace(' ', '_')}") for method in CONFIGS]
    text = table(rows)
    print(f"\n{text}")
    (ROOT / "bench/results/methods.md").write_text(text)
    unclear = [row.method for row in rows if not row.is_clear]
    if unclear:
        sys.exit(f"not clearly better than random real images: {', '.join(unclear)}")


def run(method: str, name: str) -> Row:
    """Distil by a method and evaluate what came of it, by the commands as users give them."""
    (cfg,) = (ROOT / "configs").glob(CONFIGS[method])
    config = parse("distill", ["--cfg", str(cfg)])
    begin = time.perf_counter()
    if config.sort_method and not Path(config.indices_path, f"{config.sort_method}.pt").exists():
        command("scores", *SCORES.split())
    command("distill", "--cfg", str(cfg), "--run_name", name)
    seconds = time.perf_counter() - begin
    folder = Path(config.save_path, config.dataset, str(config.ipc), config.model, name)
    average = config.ema_decay is not None
    subject = folder / "distilled_ema_best.safetensors" if average else folder
    command("evaluate", str(subject), "--compare", "--protocol", config.protocol)
    return row_of(method, folder / "metrics.jsonl", seconds)


def command(name: str, *arguments: str) -> None:
    """Run one of fastmtt's commands; where it fails it has said why."""
    if subprocess.run([sys.executable, "-m", f"fastmtt.{name}", *arguments]).returncode:
        sys.exit(f"fastmtt.{name} {' '.join(arguments)} failed")


def row_of(method: str, metrics: Path, seconds: float) -> Row:
    """Read the last evaluation from a run's metrics."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = {
        record["evaluated"].partition(" (")[0]: (record["accuracy"], record["accuracy_std"])
        for record in records
        if "evaluated" in record
    }
    return Row(method, found["distilled set"], found["random real images"], seconds)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with the machine they come from."""
    lines = [
        "# The methods on handwritten digits, one image a class (PDD two, in two stages)",
        "",
        "`make methods`: test accuracy of five networks trained on the distilled set, and on as "
        "many random real images; seconds include the experts that a method trains (TESLA and PDD "
        "take MTT's, DATM takes FTD's). FTD's set is the average of its images, PAD's seconds "
        "include the scores of the training images. IDC's are evaluated by its own protocol.",
        "",
        "| method | distilled images | random real images | seconds |",
        "|---|---|---|---|",
    ]
    for row in rows:
        distilled, random = (f"{m:.2f} ± {s:.2f} %" for m, s in (row.distilled, row.random))
        lines.append(f"| {row.method} | {distilled} | {random} | {row.seconds:.0f} |")
    facts = "; ".join(f"{name}: {value}" for name, value in machine.facts().items())
    return "\n".join([*lines, "", facts, ""])


if __name__ == "__main__":
    main()
