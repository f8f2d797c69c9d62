"""Arguments for every op: one table for opcheck, for compiled kernels and for needs."""

import itertools

import torch

SHAPES = [(1, 2, 4, 4, 3, 4), (2, 3, 5, 7, 2, 5)]  # S, B, H, W, Cin, Cout; odd sizes, S > 1
KINK = 1e-3  # distance kept from the ReLU's kink, where derivatives do not exist


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def block(shape=SHAPES[0]):
    """(gp, a, w, gamma, beta) with no activation within KINK of zero, and their tangents."""
    students, batch, height, width, c_in, c_out = shape
    for seed in itertools.count():
        make = torch.Generator().manual_seed(seed)
        u = [
            normal(make, students, batch, height // 2, width // 2, c_out),
            normal(make, students, batch, height, width, c_in),
            normal(make, students, 3, 3, c_in, c_out),
            1 + 0.3 * normal(make, students, c_out),
            0.3 * normal(make, students, c_out),
        ]
        if distance_from_kink(*u[1:]) > KINK:
            return u, [normal(make, *t.shape) for t in u]


def normalised(a, w):
    """Instance-normalised convolution of [S,B,H,W,C] and 1/std, from the textbook's formula."""
    found = []
    for x, k in zip(a, w, strict=True):
        weight = k.permute(3, 2, 0, 1).contiguous()
        z = torch.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)
        mean = z.mean((2, 3), keepdim=True)
        rstd = 1 / torch.sqrt(((z - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5)
        found.append((((z - mean) * rstd).permute(0, 2, 3, 1), rstd[:, :, 0, 0]))
    return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])


def distance_from_kink(a, w, gamma, beta):
    xhat, _ = normalised(a, w)
    return (xhat * gamma[:, None, None, None] + beta[:, None, None, None]).abs().min()


def pooled(a, w, gamma, beta):
    """The block's output: every plane's 2x2 means, written as sums of four strided views."""
    xhat, _ = normalised(a, w)
    n = (xhat * gamma[:, None, None, None] + beta[:, None, None, None]).clamp_min(0)
    rows, columns = n.shape[2] // 2 * 2, n.shape[3] // 2 * 2
    corners = [n[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)]
    return sum(corners) / 4


def head(soft, students=2, batch=3, features=6, classes=4):
    """f, w, b, labels and tangents of (f, w, b); soft labels do not sum to one."""
    make = torch.Generator().manual_seed(7)
    shapes = [(students, batch, features), (students, classes, features), (students, classes)]
    u = [normal(make, *shape) for shape in shapes]
    if soft:
        y = torch.rand(students, batch, classes, generator=make, dtype=torch.float64)
    else:
        y = torch.randint(classes, (students, batch), generator=make)
    return u, y, [normal(make, *shape) for shape in shapes]


def flags(count):
    return list(itertools.product([True, False], repeat=count))


def samples(op):
    """Argument tuples of an op, float64, made from the formulas above."""
    return list(_SAMPLES[op]())


def _conv_block():
    return ((*block(shape)[0][1:], False) for shape in SHAPES)


def _conv_block_backward():
    for shape in SHAPES:
        (gp, *u), _ = block(shape)
        for needs in flags(2):
            yield gp, *u, *normalised(*u[:2]), needs, False


def _conv_block_jvp():
    for shape in SHAPES:
        (_, *u), (_, *v) = block(shape)
        for a_dot in (v[0], None):
            for statistics in ((None, None), normalised(*u[:2])):
                yield u[0], a_dot, u[1], v[1], u[2], v[2], u[3], v[3], *statistics, False


def _conv_block_backward_jvp():
    for shape in SHAPES:
        (gp, *u), (gp_dot, *v) = block(shape)
        (xhat, rstd), (xhat_dot, rstd_dot) = torch.func.jvp(normalised, tuple(u[:2]), tuple(v[:2]))
        rest = (u[1], v[1], u[2], v[2], u[3], xhat, rstd, xhat_dot, rstd_dot)
        for needs in flags(3):
            yield gp, gp_dot, u[0], v[0], *rest, needs, False
        (_, _), (xhat_dot, rstd_dot) = torch.func.jvp(
            normalised, tuple(u[:2]), (torch.zeros_like(u[0]), v[1])
        )
        yield gp, gp_dot, u[0], None, *rest[:-2], xhat_dot, rstd_dot, (True, True, True), False


def logp_of(f, w, b):
    return (f @ w.mT + b[:, None]).log_softmax(-1)


def _linear_xent():
    for soft in (True, False):
        u, y, _ = head(soft)
        yield *u, y


def _linear_xent_backward():
    for soft in (True, False):
        (f, w, b), y, _ = head(soft)
        for needs in flags(2):
            yield f, w, logp_of(f, w, b), y, needs


def _linear_xent_jvp():
    for soft in (True, False):
        (f, w, b), y, (f_dot, w_dot, b_dot) = head(soft)
        yield f, f_dot, w, w_dot, b_dot, logp_of(f, w, b), y


def _linear_xent_backward_jvp():
    for soft in (True, False):
        u, y, v = head(soft)
        (f, w, _), (f_dot, w_dot, _) = u, v
        logp, logp_dot = torch.func.jvp(logp_of, tuple(u), tuple(v))
        for needs in flags(3):
            yield f, f_dot, w, w_dot, logp, logp_dot, y, needs


def _rows(count, students=3, size=37):
    make = torch.Generator().manual_seed(3)
    return [normal(make, students, size) for _ in range(count)]


def _sgd_update():
    theta, g = _rows(2)
    rate = torch.tensor(0.3, dtype=torch.float64)
    return [(theta, g, rate), (theta, g, rate * torch.arange(1.0, 4.0, dtype=torch.float64))]


def _sgd_momentum():
    velocity = _rows(3)[2]
    return [(theta, g, velocity, lr, 0.9, 5e-4) for theta, g, lr in _sgd_update()]


def _sqdist():
    a, b = _rows(2)
    return [(a, b, None), (a, b, a > 0), (a, b, a[0] > 0)]


def dsa_values(kind, students, batch):
    """Values as DSA draws them, per image and student, at their extremes among others."""
    make = torch.Generator().manual_seed(kind)
    u = torch.rand(students, batch, 3, generator=make)
    whole = torch.randint(-1, 2, (students, batch, 3), generator=make).float()
    spread = {
        1: torch.stack([u[..., 0] - 0.5, 2 * u[..., 1], u[..., 2] + 0.5], -1),
        2: whole,
        3: torch.randint(0, 9, (students, batch, 3), generator=make).float(),
        4: (u < 0.5).float(),
        5: u * (1.2 - 1 / 1.2) + 1 / 1.2,
        6: (u - 0.5) * torch.pi / 6,
    }
    return spread.get(kind, torch.zeros_like(u))


def _dsa():
    make = torch.Generator().manual_seed(5)
    x = normal(make, 2, 3, 3, 8, 9)
    for kind in range(7):
        yield x, torch.tensor([kind, (kind + 1) % 7]), dsa_values(kind, 2, 3), 0.5
    channels_last = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    yield channels_last, torch.tensor([2, 5]), dsa_values(2, 2, 3), 0.5


_SAMPLES = {
    "conv_block": _conv_block,
    "conv_block_backward": _conv_block_backward,
    "conv_block_jvp": _conv_block_jvp,
    "conv_block_backward_jvp": _conv_block_backward_jvp,
    "linear_xent": _linear_xent,
    "linear_xent_backward": _linear_xent_backward,
    "linear_xent_jvp": _linear_xent_jvp,
    "linear_xent_backward_jvp": _linear_xent_backward_jvp,
    "sgd_update": _sgd_update,
    "sgd_momentum": _sgd_momentum,
    "dot": lambda: [tuple(_rows(2))],
    "sqdist": _sqdist,
    "dsa": _dsa,
    "dsa_transpose": _dsa,
    "gsam_perturb": lambda: [(*_rows(2), 0.05, adaptive) for adaptive in (True, False)],
    "gsam_combine": lambda: [(*_rows(2), 0.4)],
}
