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


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_and_momentum_may_be_written_over(backend):
    theta, g, velocity, *rest = samples("sgd_momentum")[1]
    with ops.use(backend):
        want = ops.sgd_momentum(theta, g, velocity, *rest)
        theta, velocity = theta.clone(), velocity.clone()
        ops.sgd_momentum(theta, g, velocity, *rest, into=[theta, velocity])
    assert torch.equal(theta, want[0]) and torch.equal(velocity, want[1])


def test_weights_and_momentum_in_one_place_are_refused():
    theta, g, velocity, *rest = samples("sgd_momentum")[0]
    place = torch.empty_like(theta)
    with pytest.raises(RuntimeError, match="new_velocity must not lie in the memory of new_theta"):
        torch.ops.fastmtt.sgd_momentum.into(theta, g, velocity, *rest, place, place)


def test_a_result_across_an_input_is_refused():
    flat = torch.zeros(13)
    theta, shifted = flat[:12].view(2, 6), flat[1:].view(2, 6)
    with pytest.raises(RuntimeError, match="result must be theta itself or lie apart from its"):
        torch.ops.fastmtt.sgd_update.into(theta, torch.ones(2, 6), torch.tensor(0.1), shifted)


def test_a_rate_may_lie_in_the_result():
    theta, g = torch.randn(2, 6), torch.randn(2, 6)
    for rate in (theta[0, 3], theta[:, 0]):
        want = theta - rate.reshape(-1, 1) * g
        place = theta.clone()
        inside = place[0, 3] if rate.dim() == 0 else place[:, 0]
        torch.ops.fastmtt.sgd_update.into(place, g, inside, place)
        assert torch.equal(place, want)


BLOCK_OPS = [op for op in WRITING if op.startswith("conv_block")]


def block_arguments(op):
    """Two students, everything asked for, in float64: the arguments before ``into``'s places."""
    arguments = next(list(a) for a in samples(op) if len(a[0]) == 2)
    arguments = [(True,) * len(a) if isinstance(a, tuple) else a for a in arguments]
    if op == "conv_block_jvp":
        arguments[8:10] = None, None
    names = [a.name for a in getattr(torch.ops.fastmtt, op).default._schema.arguments]
    return [*arguments[: names.index("bf16")], False]


def one_number_shared(a, b):
    """Tensors of the shapes of a and b, the first's last number in the place of the other's first;
    b's values are kept."""
    memory = torch.zeros(a.numel() + b.numel() - 1, dtype=a.dtype)
    first, second = memory[: a.numel()].view(a.shape), memory[a.numel() - 1 :].view(b.shape)
    second.copy_(b)
    return first, second


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_a_block_refuses_a_result_in_the_memory_of_an_input_or_of_another_result(op):
    arguments = block_arguments(op)
    into = getattr(torch.ops.fastmtt, op).into
    right = places(getattr(ops, op)(*arguments))
    scratch = torch.empty(1 << 20, dtype=torch.uint8)
    into(*arguments, *right, scratch)
    for i in range(len(right)):
        for j, argument in enumerate(arguments):
            if isinstance(argument, torch.Tensor):
                place, inside = one_number_shared(right[i], argument)
                with pytest.raises(RuntimeError, match="must not lie in the memory of"):
                    into(
                        *arguments[:j],
                        inside,
                        *arguments[j + 1 :],
                        *right[:i],
                        place,
                        *right[i + 1 :],
                    )
        for j in range(i):
            given = list(right)
            given[i], given[j] = one_number_shared(right[i], right[j])
            with pytest.raises(RuntimeError, match="must not lie in the memory of"):
                into(*arguments, *given)
        given = list(right)
        given[i] = scratch[: right[i].nbytes].view(right[i].dtype).view(right[i].shape)
        with pytest.raises(RuntimeError, match="must not lie in the memory of scratch"):
            into(*arguments, *given, scratch)


@pytest.mark.parametrize("op", BLOCK_OPS)
def test_a_block_refuses_students_in_one_place(op):
    arguments = block_arguments(op)
    right = places(getattr(ops, op)(*arguments))
    assert len(right[0]) == 2
    for i in range(len(right)):
        given = list(right)
        given[i] = right[i][:1].expand(right[i].shape)
        with pytest.raises(RuntimeError, match="contiguous for each student"):
            getattr(torch.ops.fastmtt, op).into(*arguments, *given)


def test_a_block_writes_students_that_lie_between_each_other():
    arguments = block_arguments("conv_block_backward")
    want = ops.conv_block_backward(*arguments)
    packed = torch.full((2, 1 + sum(r[0].numel() for r in want[1:])), torch.nan).double()
    parts = packed[:, 1:].split([r[0].numel() for r in want[1:]], 1)
    given = [torch.empty_like(want[0])]
    given += [part.view(r.shape) for part, r in zip(parts, want[1:], strict=True)]
    torch.ops.fastmtt.conv_block_backward.into(*arguments, *given)
    assert all(torch.equal(place, r) for place, r in zip(given, want, strict=True))


def test_scratch_in_one_place_is_refused():
    scratch = torch.zeros(1, dtype=torch.uint8).expand(1 << 24)
    arguments = block_arguments("conv_block")
    right = places(ops.conv_block(*arguments))
    with pytest.raises(RuntimeError, match="scratch must be a contiguous uint8 tensor"):
        torch.ops.fastmtt.conv_block.into(*arguments, *right, scratch)


@pytest.mark.parametrize("anything", [torch.zeros(3, dtype=torch.int64), torch.tensor(1.0)])
@pytest.mark.parametrize("op", [op for op in BLOCK_OPS if "backward" in op])
def test_a_place_that_is_not_wanted_may_be_anything(op, anything):
    arguments = block_arguments(op)
    wanted = arguments[-2]
    right = places(getattr(ops, op)(*arguments))
    arguments[-2] = tuple(False for _ in wanted)
    getattr(torch.ops.fastmtt, op).into(*arguments, *(anything for _ in right))
