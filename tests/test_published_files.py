"""All 24 public configurations of DATM and PAD run unchanged and mean what their tables say."""

from pathlib import Path
from typing import Any

import pytest
from published_rows import ROWS, as_published, means, names_of
from saying import said

EACH = [(method, row) for method, rows in ROWS.items() for row in rows]


@pytest.mark.parametrize(
    ("method", "row"), EACH, ids=[f"{method}-{names_of(row)}" for method, row in EACH]
)
def test_a_public_file_means_its_row(tmp_path: Path, method: str, row: dict[str, Any]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(as_published(row, method))
    config, warned = said("distill", ["--cfg", str(path)])
    wanted = means(row, method)
    if method == "pad":
        wanted["depth_ratio"] = row["loss_ratio"]
    assert {name: getattr(config, name) for name in wanted} == wanted
    assert (config.buffer_path, config.data_path) == ("../buffer_storage/", "../dataset")
    assert config.project == f"{row['dataset']}_ipc{row['ipc']}"
    quirks = {
        "holds zca twice": as_published(row, method).count("zca:") == 2,
        "device is a list of GPUs": True,
        "ema_decay is ignored": True,
        "expansion_end_epoch has an effect with Sequential": names_of(row) == "Tiny-50",
        "depth_ratio has an effect with keep: depth only": method == "pad",
        f"names no method; taken as {method}": True,
    }
    for quirk, is_there in quirks.items():
        assert any(quirk in line for line in warned) == is_there, quirk
    assert len(warned) == sum(quirks.values())
