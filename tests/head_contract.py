"""What every backend's head promises, whoever computes it: against the reference in float64."""

import pytest
import torch
from compare import assert_close

from fastmtt.ops import reference

# (S, B, D, K): one of everything; odd sizes within a tile; more images, classes and features than
# tiles take; several pieces of the features.
SHAPES = [(1, 1, 1, 1), (3, 4, 7, 2), (2, 33, 39, 35), (1, 3, 300, 10)]
FLAGS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

KINDS = pytest.mark.parametrize("soft", [True, False], ids=["soft", "hard"])
EACH = pytest.mark.parametrize("shape", SHAPES, ids=str)


def pick(values, names):
    return [values[name] for name in names.split()]


def wide(args):
    return [a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]


def calls(v, needs=FLAGS[0]):
    return [
        ("linear_xent", pick(v, "f w b y")),
        ("linear_xent_backward", [*pick(v, "f w logp y"), needs[:2]]),
        ("linear_xent_jvp", pick(v, "f f_dot w w_dot b_dot logp y")),
        ("linear_xent_backward_jvp", [*pick(v, "f f_dot w w_dot logp logp_dot y"), needs]),
    ]


def partial_calls(v):
    """Calls of the ops that can do less than everything, doing so."""
    return [(op, args) for needs in FLAGS[1:] for op, args in calls(v, needs)[1::2]]


class HeadOps:
    """A subclass has run(op, *args, into=None) and may work in another precision."""

    dtype = torch.float32
    # Logits add up D rounded products, and cross-entropy's gradient is a difference of
    # probabilities: some ten roundings of float32 are seen.
    tolerance = 3e-6

    def arguments(self, shape, soft):
        """Every argument by name; log-probabilities and their tangents by the reference."""
        s, b, d, k = shape
        make, v = torch.Generator().manual_seed(7), {}

        def apart(*size, scale=1.0):
            """Each student's part contiguous, within a longer vector."""
            count = torch.Size(size).numel()
            numbers = torch.randn(s, 3 + count, generator=make, dtype=self.dtype) * scale
            return numbers.to(DEVICE)[:, 3:].unflatten(1, size)

        for dot in ("", "_dot"):
            v["f" + dot] = apart(b, d)
            v["w" + dot] = apart(k, d, scale=d**-0.5)
            v["b" + dot] = apart(k)
        v["y"] = torch.randint(k, (s, b), generator=make).to(DEVICE)
        if soft:  # learned ones: not positive, not of sum one
            v["y"] = torch.randn(s, b, k, generator=make, dtype=self.dtype).to(DEVICE)
        _, logp = reference.linear_xent(*wide(pick(v, "f w b y")))
        v["logp"] = logp.to(self.dtype)
        _, logp_dot = reference.linear_xent_jvp(*wide(pick(v, "f f_dot w w_dot b_dot logp y")))
        return v | {"logp_dot": logp_dot.to(self.dtype)}

    def place_like(self, result):
        """NaN, students apart in memory."""
        if result.dim() < 2:
            return torch.full_like(result, torch.nan, dtype=self.dtype)
        size = len(result), 2, *result.shape[1:]
        return torch.full(size, torch.nan, dtype=self.dtype, device=DEVICE)[:, 1]

    def assert_same(self, got, want, what):
        if want.norm() > 1e-3:  # with one class all that is left of a loss is rounding
            return assert_close(got, want, self.tolerance, what)
        assert got.shape == want.shape and (got - want).norm() < 1e-6, what

    @KINDS
    @EACH
    def test_every_op_agrees_with_float64(self, shape, soft):
        v = self.arguments(shape, soft)
        for op, args in calls(v) + (partial_calls(v) if shape == SHAPES[1] else []):
            truth = getattr(reference, op)(*wide(args))
            places = [self.place_like(result) for result in truth]
            found = self.run(op, *args, into=[*places, torch.empty(5)])
            assert len(found) == len(truth)
            for i, (got, place, want) in enumerate(zip(found, places, truth, strict=True)):
                assert got is place
                self.assert_same(got, want, f"{op}'s result {i}, needs {args[-1]}")
            if shape in SHAPES[:2]:  # the interpreter is slow
                for fresh, got in zip(self.run(op, *args), found, strict=True):
                    assert torch.equal(fresh, got)

    @KINDS
    def test_what_is_not_asked_for_is_left_alone(self, soft):
        v = self.arguments(SHAPES[1], soft)
        shapes = {op: [r.shape for r in self.run(op, *args)] for op, args in calls(v)[1::2]}
        for op, args in partial_calls(v):
            whole = [v["f"].new_full(shape, -1) for shape in shapes[op]]
            asked = self.run(op, *args)
            for place, result in zip(self.run(op, *args, into=whole), asked, strict=True):
                left = torch.full_like(place, -1)
                assert torch.equal(place, left if result.shape == (0,) else result)

    @KINDS
    def test_no_bit_depends_on_company_or_strides(self, soft):
        v = self.arguments((2, 5, 140, 7), soft)
        alone = {name: t[1:2] for name, t in v.items()}
        columns = {name: t.mT.contiguous().mT if t.dim() == 3 else t for name, t in v.items()}
        for (op, args), (_, one), (_, other) in zip(
            calls(v), calls(alone), calls(columns), strict=True
        ):
            found = self.run(op, *args), self.run(op, *one), self.run(op, *other)
            for want, got, strided in zip(*found, strict=True):
                assert torch.equal(want[1:2], got) and torch.equal(want, strided), op

    @KINDS
    def test_far_off_logits_neither_overflow_nor_hide_a_nan(self, soft):
        v = self.arguments((1, 3, 4, 5), soft)
        v["b"][0, 2] = 3e4  # exp of it is infinite, exp of the others' distance from it zero
        loss, logp = self.run("linear_xent", *pick(v, "f w b y"))
        want = reference.linear_xent(*wide(pick(v, "f w b y")))
        assert_close(loss, want[0], self.tolerance)
        assert_close(logp, want[1], self.tolerance)
        v["f"][0, 1, 0] = float("nan")
        loss, logp = self.run("linear_xent", *pick(v, "f w b y"))
        assert loss.isnan().all() and logp.isnan().any(-1).tolist() == [[False, True, False]]
        g = self.run("linear_xent_backward", v["f"], v["w"], logp, v["y"], (True, False))[0]
        assert g.isnan().all(-1).tolist() == [[False, True, False]]

    @pytest.mark.parametrize("label", [-1, 5])
    def test_a_class_out_of_range_shows(self, label):
        v = self.arguments((2, 3, 4, 5), soft=False)
        v["y"][0, 1] = label
        loss, logp = self.run("linear_xent", *pick(v, "f w b y"))
        assert loss.isnan().tolist() == [True, False]
        assert logp.isnan().all(-1).tolist() == [[False, True, False], [False, False, False]]

    def assert_refused(self, wrong):
        """Each tensor by the name of what it stands for is refused, by every op that takes it."""
        v = self.arguments((2, 3, 4, 5), soft=False)
        for name, (change, sentence) in wrong.items():
            tensor, hit = change(v[name]), 0
            for op, args in calls({**v, name: tensor}):
                if any(a is tensor for a in args):
                    hit += 1
                    with pytest.raises(RuntimeError, match=f"{op}: {sentence}"):
                        self.run(op, *args)
            assert hit

    def test_a_place_that_does_not_fit_is_refused(self):
        v = self.arguments((2, 3, 4, 5), soft=False)
        for op, args in calls(v):
            right = list(self.run(op, *args))
            for i in range(2):
                unfit = torch.empty(*right[i].shape, 2, device=DEVICE, dtype=self.dtype)[..., 0]
                with pytest.raises(RuntimeError, match=f"{op}: .* to be written"):
                    self.run(op, *args, into=[*right[:i], unfit, *right[i + 1 :]])
