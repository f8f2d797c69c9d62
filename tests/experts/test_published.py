"""Replay buffers of the published programs, written here as those programs write them."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from fastmtt.errors import FastmttError
from fastmtt.experts import published
from fastmtt.experts.published import PublishedBuffer, open_experts, unflatten, write_published
from fastmtt.experts.store import TrajectoryStore

SHAPES = [[4, 1, 3, 3], [4], [4], [4], [3, 16], [3]]
META = {"shapes": SHAPES, "names": list("abcdef"), "network": "ConvNet", "dataset": "digits"}


def trajectory(seed: int, snapshots: int = 4) -> list[list[torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=random) for shape in SHAPES] for _ in range(snapshots)]


def flat(snapshot: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in snapshot])


@pytest.fixture
def root(tmp_path) -> Path:
    """Two files, of two experts and of one."""
    torch.save([trajectory(0), trajectory(1, 5)], tmp_path / "replay_buffer_0.pt")
    torch.save([trajectory(2)], tmp_path / "replay_buffer_1.pt")
    return tmp_path


def refusal(folder: Path, meta=META) -> str:
    with pytest.raises(FastmttError) as stop:
        PublishedBuffer(folder, meta).missing(1, 1)
    said = str(stop.value)
    assert "\n" not in said and str(folder) in said and ("wanted" in said or "remove it" in said)
    return said


def test_rows_are_those_that_were_saved(root):
    buffer = PublishedBuffer(root, META)
    assert buffer.indices() == [0, 1, 2] and [buffer.length(i) for i in range(3)] == [4, 5, 4]
    for index, snapshots in ((0, 4), (1, 5), (2, 4)):
        saved = trajectory(index, snapshots)
        for start, stop in ((0, 3), (2, 1), (3, 3)):
            first, last = buffer.segment(index, start, stop)
            assert first.dtype == torch.float32
            assert torch.equal(first, flat(saved[start])) and torch.equal(last, flat(saved[stop]))
    assert buffer.path(2).name == "replay_buffer_1.pt"
    assert buffer.missing(3, 3) == []


def test_it_says_what_is_known_and_that_the_recipe_is_not(root):
    meta = PublishedBuffer(root).meta(1)
    assert meta["shapes"] == SHAPES and "do not say" in meta["recipe"]["unknown"]


def test_files_are_mapped_and_opened_once(root, monkeypatch):
    opened = []
    real = published.read_pickle

    def counted(path, wanted, *, mapped):
        opened.append((path.name, mapped))
        return real(path, wanted, mapped=mapped)

    monkeypatch.setattr(published, "read_pickle", counted)
    buffer = PublishedBuffer(root, META)
    for _ in range(5):
        for index in buffer.indices():
            buffer.segment(index, 0, 1)
    assert opened == [("replay_buffer_0.pt", True), ("replay_buffer_1.pt", True)]


def test_rows_stay_when_the_file_goes(root):
    buffer = PublishedBuffer(root, META)
    row, _ = buffer.segment(0, 1, 2)
    with open(root / "replay_buffer_0.pt", "r+b") as file:
        file.write(b"\0" * 200)
    assert torch.equal(row, flat(trajectory(0)[1]))


def test_the_folder_decides_which_kind_is_opened(root, tmp_path):
    assert isinstance(open_experts(root, META), PublishedBuffer)
    assert isinstance(open_experts(tmp_path / "nothing", META), TrajectoryStore)
    (root / "expert_00000.safetensors").touch()
    with pytest.raises(FastmttError, match="both"):
        open_experts(root, META)


def test_reading_ends_at_the_first_number_that_is_missing(root, capsys):
    (root / "replay_buffer_1.pt").rename(root / "replay_buffer_7.pt")
    assert PublishedBuffer(root, META).indices() == [0, 1]
    assert "replay_buffer_1.pt is missing" in capsys.readouterr().err
    (root / "replay_buffer_0.pt").unlink()
    with pytest.raises(FastmttError, match="no replay_buffer_0"):
        open_experts(root, META)


def test_experts_are_not_added_to_and_must_be_long_enough(root):
    buffer = PublishedBuffer(root, META)
    with pytest.raises(FastmttError, match="set num_experts to 3"):
        buffer.missing(4, 1)
    with pytest.raises(FastmttError, match="trained for 3 epochs, wanted at least 4"):
        buffer.missing(3, 4)
    with pytest.raises(FastmttError, match="snapshots 0 to 3, wanted 2 and 4"):
        buffer.segment(0, 2, 4)
    with pytest.raises(FastmttError, match="wanted number 3"):
        buffer.segment(3, 0, 1)


def test_experts_of_another_network_are_refused(root):
    others = {**META, "shapes": [*SHAPES[:-1], [4]]}
    assert "parameter 5 shaped [3], wanted [4]" in refusal(root, others)
    assert "6 parameters, wanted 5" in refusal(root, {**META, "shapes": SHAPES[:-1]})


def test_experts_must_agree_among_themselves(root):
    odd = trajectory(3)
    odd[2][1] = torch.zeros(5)
    torch.save([odd], root / "replay_buffer_1.pt")
    assert "snapshot 2 has a parameter 1 shaped [5]" in refusal(root, None)


def test_snapshots_that_are_one_tensor_are_refused(tmp_path):
    """What `p.detach().cpu()` without a clone saves on a machine without a GPU."""
    final = trajectory(0)[-1]
    torch.save([[list(final) for _ in range(4)]], tmp_path / "replay_buffer_0.pt")
    assert "without a GPU" in refusal(tmp_path)


def test_experts_that_diverged_are_refused(tmp_path):
    gone = trajectory(0)
    gone[-1][0][0] = float("nan")
    torch.save([gone], tmp_path / "replay_buffer_0.pt")
    assert "not finite" in refusal(tmp_path)
    hidden = trajectory(0)
    hidden[1][4][0, 0] = float("inf")
    torch.save([hidden], tmp_path / "replay_buffer_0.pt")
    with pytest.raises(FastmttError, match="not finite"):
        PublishedBuffer(tmp_path, META).segment(0, 0, 1)


class Command:
    """Unpickled freely, it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch '{self.trace}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_does_not_run(tmp_path, zipped):
    trace = tmp_path / "trace"
    content = [[Command(trace)], trajectory(0)]
    torch.save(content, tmp_path / "replay_buffer_0.pt", _use_new_zipfile_serialization=zipped)
    refusal(tmp_path)
    assert not trace.exists()
    (tmp_path / "replay_buffer_0.pt").write_bytes(pickle.dumps(content))
    refusal(tmp_path)
    assert not trace.exists()


def saved(content) -> bytes:

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


WHOLE = saved([trajectory(0)])
CONTENTS = {
    "empty": b"",
    "text": b"hello",
    "half": WHOLE[: len(WHOLE) // 2],
    "no end": WHOLE[:-30],
    "no experts": saved([]),
    "no trajectory": saved([[]]),
    "one snapshot": saved([trajectory(0, 1)]),
    "empty snapshots": saved([[[], []]]),
    "one level less": saved(trajectory(0)),
    "one level more": saved([[trajectory(0)]]),
    "a tensor": saved(torch.zeros(3)),
    "numbers": saved([[[1.0, 2.0], [3.0, 4.0]]]),
    "doubles": saved([[[t.double() for t in s] for s in trajectory(0)]]),
    "names": saved([[dict(enumerate(s)) for s in trajectory(0)]]),
    "sparse": saved([[[torch.eye(3).to_sparse()] for _ in range(2)]]),
    "huge": saved([[[torch.zeros(1).expand(10**9)] for _ in range(2)]]),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_damaged_and_foreign_files_are_refused_in_a_sentence(tmp_path, kind):
    (tmp_path / "replay_buffer_0.pt").write_bytes(CONTENTS[kind])
    assert "replay_buffer_0.pt" in refusal(tmp_path, None)


def test_other_zip_files_and_folders_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "replay_buffer_0.pt", "w") as file:
        file.writestr("archive/data.pkl", b"not a pickle")
    assert "damaged" in refusal(tmp_path)
    (tmp_path / "replay_buffer_0.pt").unlink()
    (tmp_path / "replay_buffer_0.pt").mkdir()
    assert "cannot be read" in refusal(tmp_path)


def test_the_format_before_pytorch_1_6_is_refused_by_name(tmp_path):
    file = tmp_path / "replay_buffer_0.pt"
    torch.save([trajectory(0)], file, _use_new_zipfile_serialization=False)
    assert "PyTorch 1.6" in refusal(tmp_path)


def test_what_is_written_is_read_by_the_published_programs_and_by_us(tmp_path):
    rows = torch.stack([flat(snapshot) for snapshot in trajectory(0)])
    path = write_published(tmp_path, 0, [unflatten(rows, SHAPES), trajectory(1)])
    content = torch.load(path)  # as they read it
    assert [len(content), len(content[0]), len(content[0][0])] == [2, 4, 6]
    for got, wanted in zip(content, (trajectory(0), trajectory(1)), strict=True):
        for snapshot, other in zip(got, wanted, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(snapshot, other, strict=True))
    first, last = PublishedBuffer(tmp_path, META).segment(0, 1, 3)
    assert torch.equal(first, rows[1]) and torch.equal(last, rows[3])
    assert path.stat().st_size < 2 * rows.nbytes + 20_000
    assert [p.name for p in tmp_path.iterdir()] == ["replay_buffer_0.pt"]
