"""Index files of difficulty orders: the field's form, ours for unequal classes, and refusals."""

import re

import pytest
import torch

from fastmtt.errors import FastmttError
from fastmtt.experts.order import digest, read_order, write_order

LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
EQUAL = [[5, 0], [1, 4], [3, 2]]
UNEQUAL_LABELS = torch.tensor([1, 0, 1, 1])


def rows(order):
    return [torch.tensor(row) for row in order]


def read(path, labels=LABELS, classes=3):
    return [row.tolist() for row in read_order(str(path), path.parent, labels, classes)]


def test_the_fields_file_is_read_and_written(tmp_path):
    torch.save(torch.tensor(EQUAL), tmp_path / "field.pt")
    assert read(tmp_path / "field.pt") == EQUAL
    write_order(tmp_path / "ours.pt", rows(EQUAL))
    written = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert torch.equal(written, torch.tensor(EQUAL)) and written.dtype == torch.int64


def test_unequal_classes_are_a_list(tmp_path):
    order = [[1], [3, 0, 2]]
    write_order(tmp_path / "new" / "unequal.pt", rows(order))
    written = torch.load(tmp_path / "new" / "unequal.pt", weights_only=True)
    assert [row.tolist() for row in written] == order
    assert read(tmp_path / "new" / "unequal.pt", UNEQUAL_LABELS, 2) == order


def test_views_bring_nothing_else_into_the_file(tmp_path):
    whole = torch.arange(100_000)
    write_order(tmp_path / "views.pt", [whole[:1], whole[1:4]])
    assert (tmp_path / "views.pt").stat().st_size < 5000


def test_a_name_is_looked_up_in_the_folder(tmp_path):
    write_order(tmp_path / "GraNd.pt", rows(EQUAL))
    assert [row.tolist() for row in read_order("GraNd", tmp_path, LABELS, 3)] == EQUAL
    with pytest.raises(FastmttError, match="'Grand'.*index files in .*: GraNd; fastmtt.scores"):
        read_order("Grand", tmp_path, LABELS, 3)
    with pytest.raises(FastmttError, match=": none"):
        read_order("GraNd", tmp_path / "absent", LABELS, 3)


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ([[5, 0], [1, 4]], "2 classes, the data set 3"),
        ([[5, 0], [1, 3], [4, 2]], "row 3 stands under class 1 and is of class 2"),
        ([[5, 5], [1, 4], [3, 2]], "class 0 names an image twice"),
        ([[5], [1], [3]], "class 0 has 1 rows, the data set 2 images of it"),
        ([[5, 6], [1, 4], [3, 2]], "row 6 of 6"),
        ([[5, -1], [1, 4], [3, 2]], "row -1 of 6"),
    ],
)
def test_an_order_of_other_images_is_refused(tmp_path, order, why):
    torch.save(torch.tensor(order), tmp_path / "other.pt")
    with pytest.raises(FastmttError, match=f"other.pt does not order.*{re.escape(why)}.*; make it"):
        read(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (torch.arange(6), "a tensor [6] of torch.int64"),
        (torch.tensor(EQUAL).float(), "a tensor [3, 2] of torch.float32"),
        ([torch.zeros(2), torch.zeros(2), torch.zeros(2)], "a list of other tensors"),
        (EQUAL, "a list"),
        ({"order": torch.tensor(EQUAL)}, "a dict"),
        (torch.tensor(3), "a tensor [] of torch.int64"),
    ],
)
def test_other_contents_are_refused(tmp_path, content, form):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(FastmttError, match=f"holds {re.escape(form)}, wanted an int64"):
        read(tmp_path / "other.pt")


def test_damage_is_refused(tmp_path):
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(FastmttError, match="damaged"):
        read(tmp_path / "damaged.pt")


def test_the_digest_tells_orders_apart_and_files_not():
    assert digest(rows(EQUAL)) == digest(list(torch.tensor(EQUAL)))
    assert digest(rows(EQUAL)) != digest(rows([[0, 5], *EQUAL[1:]]))
    assert digest(rows([[1, 2], [3]])) != digest(rows([[1], [2, 3]]))
    assert re.fullmatch("[0-9a-f]{16}", digest(rows(EQUAL)))
