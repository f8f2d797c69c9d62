"""The table of `make methods`: figures out of metrics, and when a method is clearly better."""

import json
from pathlib import Path

from bench.methods import Row, row_of, table


def test_a_row_is_the_last_evaluation(tmp_path: Path) -> None:
    records = [
        {"iteration": 0, "loss": 1.0},
        {"evaluated": "distilled set (best)", "accuracy": 1.0, "accuracy_std": 0.5},
        {"evaluated": "random real images", "accuracy": 2.0, "accuracy_std": 0.5},
        {"evaluated": "distilled set (ema_best)", "accuracy": 90.0, "accuracy_std": 1.0},
        {"evaluated": "random real images", "accuracy": 70.5, "accuracy_std": 5.0},
        {"evaluated": "all real training images", "accuracy": 99.0, "accuracy_std": 0.1},
    ]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    row = row_of("ftd", metrics, 61.4)
    assert row == Row("ftd", (90.0, 1.0), (70.5, 5.0), 61.4)
    assert "| ftd | 90.00 ± 1.00 % | 70.50 ± 5.00 % | 61 |" in table([row]).splitlines()


def test_a_set_is_clearly_better_by_more_than_both_deviations() -> None:
    assert Row("mtt", (77.0, 1.0), (70.0, 5.0), 1).is_clear
    assert not Row("mtt", (76.0, 1.0), (70.0, 5.0), 1).is_clear
    assert not Row("mtt", (60.0, 1.0), (70.0, 5.0), 1).is_clear
