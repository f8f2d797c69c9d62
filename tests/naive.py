"""Independent truth: the unroll as the public programs write it, on autograd's double backward.

Straight loops, one segment after another, nothing of fastmtt. Memory grows with the steps.
"""

import torch
import torch.nn.functional as F
from torch.func import functional_call


def flat_weights(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def outputs(module, theta, x):
    """The module's outputs at flat weights [P]."""
    weights, offset = {}, 0
    for name, p in module.named_parameters():
        weights[name] = theta[offset : offset + p.numel()].reshape(p.shape)
        offset += p.numel()
    return functional_call(module, weights, (x,))


def step_gradient(module, theta, x, y, loss_fn=F.cross_entropy):
    """The gradient of one batch's loss in the weights, itself differentiable."""
    loss = loss_fn(outputs(module, theta, x), y)
    return torch.autograd.grad(loss, theta, create_graph=True)[0]


def train(module, theta, batches, lr, *, loss_fn=F.cross_entropy, first=0):
    """theta_0 .. theta_N by plain SGD; steps before `first` count as constants."""
    theta = theta if theta.requires_grad else theta.detach().requires_grad_()
    thetas = [theta]
    for t, (x, y) in enumerate(batches):
        rate = lr if lr.dim() == 0 else lr[t]
        update = rate * step_gradient(module, thetas[-1], x, y, loss_fn)
        thetas.append(thetas[-1] - (update if t >= first else update.detach()))
    return thetas


def batches_of(images, labels, draws, segment, augment):
    """One segment's batches; `augment(x, kind, values)` is the truth for a DSA's parameters."""
    batches = []
    for t, indices in enumerate(draws.indices):
        x, y = images[indices[segment]], labels[indices[segment]]
        if augment is not None:
            for kind, values in zip(*draws.parameters[t], strict=True):
                x = augment(x, int(kind[segment]), values[segment].to(x.dtype))
        batches.append((x, y))
    return batches


def matching_loss(
    module, given, draws, *, augment=None, keep=None, loss_fn=F.cross_entropy, first=0
):
    """The mean over segments of |theta_N - theta*|^2 / |theta_0 - theta*|^2 over `keep`.

    `given` holds start and target [S,P], images, labels and lr; `keep` maps squared distances to
    a mask.
    """
    ratios = []
    pairs = zip(given["start"], given["target"], strict=True)
    for segment, (start, target) in enumerate(pairs):
        batches = batches_of(given["images"], given["labels"], draws, segment, augment)
        end = train(module, start, batches, given["lr"], loss_fn=loss_fn, first=first)[-1]
        square, scale = (end - target) ** 2, (start - target) ** 2
        if keep is not None:
            mask = keep(square.detach())
            square, scale = square[mask], scale[mask]
        ratios.append(square.sum() / scale.sum())
    return sum(ratios) / len(ratios)


def gradients(loss, given):
    """Gradients of `loss` in all of `given` that require grad, by name."""
    leaves = {name: t for name, t in given.items() if t.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def tesla_gradients(module, given, draws, *, augment=None):
    """TESLA's two passes (Cui et al., 2023), with the factor 2 the paper means; one segment."""
    start, target, lr = given["start"][0].detach(), given["target"][0].detach(), given["lr"]
    batches = batches_of(given["images"], given["labels"], draws, 0, augment)
    beta, total, thetas = lr.detach(), torch.zeros_like(start), [start]
    for x, y in batches:
        leaf = thetas[-1].clone().requires_grad_()
        g = step_gradient(module, leaf, x.detach(), y.detach()).detach()
        total += g
        thetas.append(leaf.detach() - beta * g)
    scale = (start - target).square().sum()
    v = beta * (target - start) + beta**2 * total
    wanted = [given["images"]] + [given["labels"]] * given["labels"].is_floating_point()
    sums = [torch.zeros_like(w) for w in wanted]
    for theta, (x, y) in zip(thetas[:-1], batches, strict=True):
        leaf = theta.clone().requires_grad_()
        product = v @ step_gradient(module, leaf, x, y)
        parts = torch.autograd.grad(product, wanted, retain_graph=True)
        sums = [s + 2 / scale * p for s, p in zip(sums, parts, strict=True)]
    found = dict(zip(["images", "labels"], sums, strict=False))
    found["lr"] = -2 * total @ (thetas[-1] - target) / scale
    return found
