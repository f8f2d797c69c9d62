"""``python -m fastmtt.export SOURCE --to DIR``: our files in the layouts other programs read.

A folder of experts becomes ``replay_buffer_0.pt``, ``replay_buffer_1.pt``, ... of ten experts each,
as MTT, FTD, TESLA, DATM, PAD and PDD read them; the last file holds what is left.

A run, or one of its ``distilled_*.safetensors``, becomes ``images.pt``, ``labels.pt`` and
``lr.pt``, one tensor each: images float32 [n,C,H,W] in the space they were trained in (normalised
or whitened), labels int64 [n] class by class or float32 logits [n,classes], the learning rate a
scalar. DATM's and PAD's evaluation takes these files (``--data_dir``, ``--label_dir``,
``--lr_dir``), and so does ``python -m fastmtt.evaluate``; DD-Ranking takes the tensors in them
(``image_tensor``, ``hard_labels`` or ``soft_labels``, ``syn_lr``; logits for its criteria ``sce``
and ``kl`` with ``soft_label_mode`` S; ``use_zca`` where the set was whitened).

Nothing that exists is overwritten.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from fastmtt.command import Parser, command
from fastmtt.errors import FastmttError
from fastmtt.experts.published import Trajectory, unflatten, write_published
from fastmtt.experts.store import KIND, TrajectoryStore
from fastmtt.files import open_safetensors, write_pt
from fastmtt.progress import progress, say
from fastmtt.synthetic import load_synthetic

A_FILE = 10  # experts in a file, the published programs' save_interval


def export_experts(source: Path, to: Path) -> list[Path]:
    """Write a store's experts as replay buffers of ten.

    Args:
        source: folder of ``expert_*.safetensors``.
        to: folder of the files to write.

    Returns:
        The files, in order.

    Raises:
        FastmttError: an expert is damaged, the experts are of different networks, or a file is
            there already.
    """
    store = TrajectoryStore(source)
    indices = store.indices()
    # of one network: an old program takes the first one's shapes for all
    store = TrajectoryStore(source, {"shapes": store.meta(indices[0])["shapes"]})
    parts = [indices[i : i + A_FILE] for i in range(0, len(indices), A_FILE)]
    _check_free([to / f"replay_buffer_{number}.pt" for number in range(len(parts))])
    for index in indices:
        store.length(index)  # finds a damaged one before anything is written
    files = enumerate(progress(parts, desc=f"{to}: experts, ten a file"))
    return [
        write_published(to, number, [_trajectory(store, index) for index in part])
        for number, part in files
    ]


def export_set(file: Path, to: Path) -> list[Path]:
    """Write a distilled set as ``images.pt``, ``labels.pt`` and ``lr.pt``.

    Raises:
        FastmttError: the set is damaged, or a file is there already.
    """
    synthetic, _ = load_synthetic(file)
    tensors = {"images": synthetic.images, "labels": synthetic.labels, "lr": synthetic.lr}
    files = [to / f"{name}.pt" for name in tensors]
    _check_free(files)
    for path, tensor in zip(files, tensors.values(), strict=True):
        write_pt(path, tensor)
    return files


def _trajectory(store: TrajectoryStore, index: int) -> Trajectory:
    """An expert as the published programs keep it, on the mapped file: ten would fill memory."""
    with open_safetensors(store.path(index), KIND) as (handle, meta):
        rows: Tensor = handle.get_tensor("trajectory")
        return unflatten(rows, meta["shapes"])


def _check_free(files: Sequence[Path]) -> None:
    taken = [str(file) for file in files if file.exists()]
    if taken:
        raise FastmttError(
            f"{taken[0]} exists, and nothing is overwritten; choose another folder with --to"
        )


def _find_set(source: Path, which: str) -> Path:
    file = source / f"distilled_{which}.safetensors" if source.is_dir() else source
    if not file.is_file():
        raise FastmttError(
            f"{source} holds neither expert_*.safetensors nor {file.name}; wanted a folder of "
            "experts, a run's folder, or one of its distilled_*.safetensors"
        )
    return file


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m fastmtt.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help="a folder of experts, a run's folder, or its images' file")
    parser.add_argument("--to", required=True, metavar="DIR", help="folder of the files to write")
    parser.add_argument(
        "--which",
        choices=("best", "held_out", "last"),
        default="best",
        help="a run's set: best on test images (default), best on held-out ones, or the last",
    )
    return parser


@command
def main(argv: list[str] | None = None) -> None:
    """Write a store's experts or a run's distilled set as other programs read them."""
    asked = _parser().parse_args(argv)
    source, to = Path(asked.source), Path(asked.to)
    experts = source.is_dir() and bool(TrajectoryStore(source).indices())
    if experts:
        files = export_experts(source, to)
    else:
        files = export_set(_find_set(source, asked.which), to)
    say(f"{to}: {', '.join(file.name for file in files)}")


if __name__ == "__main__":
    main()
