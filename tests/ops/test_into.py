"""Results written into given tensors: the same bits, in the places given, on every backend."""

import pytest
import torch
from samples import samples

from fastmtt import ops
from fastmtt.ops import backends, reference

BACKENDS = ["reference", "cpu"]
WRITING = [
    op
    for op in reference.__all__
    if backends.extension_error() is None and "into" in getattr(torch.ops.fastmtt, op).overloads()
]

pytestmark = pytest.mark.usefixtures("extension")


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


def places(results):
    return [torch.full(r.shape, torch.nan, dtype=r.dtype) for r in results]


def test_there_are_ops_that_write():
    assert "sgd_update" in WRITING


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", WRITING)
def test_results_have_the_bits_of_the_op_and_the_places_given(op, backend):
    with ops.use(backend):
        for arguments in samples(op):
            fresh = getattr(ops, op)(*arguments)
            given = places(as_tuple(fresh))
            found = getattr(ops, op)(*arguments, into=given)
            assert isinstance(found, tuple) == isinstance(fresh, tuple)
            for got, place, want in zip(as_tuple(found), given, as_tuple(fresh), strict=True):
                assert got is place and torch.equal(got, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", [op for op in WRITING if "backward" in op])
def test_what_is_not_asked_for_is_left_alone(op, backend):
    with ops.use(backend):
        for arguments in samples(op):
            whole = [tuple(True for _ in a) if isinstance(a, tuple) else a for a in arguments]
            everything = [torch.full_like(r, -1) for r in getattr(ops, op)(*whole)]
            found = getattr(ops, op)(*arguments)
            getattr(ops, op)(*arguments, into=everything)
            for place, result in zip(everything, found, strict=True):
                want = result if result.shape == place.shape else torch.full_like(place, -1)
                assert torch.equal(place, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", WRITING)
def test_a_place_that_does_not_fit_is_named(op, backend):
    arguments = samples(op)[0]
    right = places(as_tuple(getattr(ops, op)(*arguments)))
    for i, place in enumerate(right):
        wide = torch.empty(*place.shape, 2, dtype=place.dtype)
        for wrong in (wide, wide[..., 0], place.float()):
            given = [*right[:i], wrong, *right[i + 1 :]]
            with ops.use(backend), pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
                getattr(ops, op)(*arguments, into=given)


def test_room_beyond_the_results_is_nothing_to_the_reference():
    theta = torch.ones(2, 3)
    place, room = torch.empty(2), torch.full((5,), 7.0)
    with ops.use("reference"):
        assert ops.dot(theta, theta, into=[place, room]) is place
    assert place.tolist() == [3.0, 3.0] and room.tolist() == [7.0] * 5


@pytest.mark.parametrize("op", WRITING)
def test_writing_raises_the_version(op):
    arguments = samples(op)[0]
    given = places(as_tuple(getattr(ops, op)(*arguments)))
    before = [place._version for place in given]
    getattr(ops, op)(*arguments, into=given)
    assert all(place._version > version for place, version in zip(given, before, strict=True))
    with torch.inference_mode():
        getattr(ops, op)(*arguments, into=places(given))


@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors_may_be_written_over(backend):
    theta, g = samples("sgd_update")[0][:2]
    rate = torch.tensor(0.3, dtype=torch.float64)
    with ops.use(backend):
        for op, tail in (
            ("sgd_update", (rate,)),
            ("gsam_perturb", (0.1, True)),
            ("gsam_combine", (0.4,)),
        ):
            want = getattr(ops, op)(theta, g, *tail)
            for i in (0, 1):
                pair = [theta.clone(), g.clone()]
                getattr(ops, op)(*pair, *tail, into=[pair[i]])
                assert torch.equal(pair[i], want)


def test_a_result_across_an_input_is_refused():
    flat = torch.zeros(13)
    theta, shifted = flat[:12].view(2, 6), flat[1:].view(2, 6)
    with pytest.raises(RuntimeError, match="result must be theta itself or lie apart from its"):
        torch.ops.fastmtt.sgd_update.into(theta, torch.ones(2, 6), torch.tensor(0.1), shifted)
