"""The methods as straight-line programs: plain autograd by the formulas, nothing of fastmtt.

Each program is a generator: of a start, experts and draws that are given it makes what is learned
after each outer iteration, as a dictionary. `o` holds the configuration's values by its keys.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass
class Given:
    """What the programs are given.

    `segment(it, low, high)` tells an iteration's expert and start epoch, `permutations(it)` its
    orders of the set, `augment(it, step, x)` augments a batch, `windows(it, step, stored, labels)`
    makes one of stored images.
    """

    network: nn.Module
    images: Tensor
    labels: Tensor
    lr: float
    experts: list[Tensor]
    segment: Callable[[int, int, int], tuple[int, int]]
    permutations: Callable[[int], Iterator[Tensor]]
    augment: Callable[[int, int, Tensor], Tensor] = lambda it, step, x: x
    windows: Callable[[int, int, Tensor, Tensor], tuple[Tensor, Tensor]] = (
        lambda it, step, stored, labels: (stored, labels)
    )

    def pair(self, it: int, low: int, high: int, epochs: int) -> tuple[Tensor, Tensor]:
        expert, epoch = self.segment(it, low, high)
        assert low <= epoch < high
        return self.experts[expert][epoch], self.experts[expert][epoch + epochs]

    def batches(self, it: int, o) -> list[Tensor]:
        """Rows of each step: a permutation in chunks, the last and perhaps short one first."""
        orders, left, rows = self.permutations(it), [], []
        for _ in range(o.syn_steps):
            if not left:
                order = next(orders)
                left = [order[i : i + o.batch_syn] for i in range(0, len(order), o.batch_syn)]
            rows.append(left.pop())
        return rows


def logits(network, theta, x):
    """Outputs at flat weights: the parameters' elements one after another."""
    weights, offset = {}, 0
    for name, parameter in network.named_parameters():
        weights[name] = theta[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return functional_call(network, weights, (x,))


def roll_and_cut(canvases, offsets, height, width):
    """MTT's windows: each canvas rolled by its offsets down and right, its first corner taken."""
    return torch.stack(
        [
            torch.roll(canvas, (down, right), (1, 2))[:, :height, :width]
            for canvas, (down, right) in zip(canvases, offsets, strict=True)
        ]
    )


def cross_entropy(outputs, labels):
    return -outputs.log_softmax(1)[torch.arange(len(labels)), labels].mean()


def soft_cross_entropy(outputs, label_logits):
    return -(label_logits.softmax(1) * outputs.log_softmax(1)).sum() / len(outputs)


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


def mtt(given, o, iterations=3, decay=None, frozen=0, keep=None):
    """MTT; FTD's average with its decay; PDD's first rows, which stay; PAD's choice of weights."""
    images, lr = leaf(given.images), leaf(torch.tensor(given.lr, dtype=torch.float64))
    images_velocity = lr_velocity = 0.0
    average = given.images.clone()
    for it in range(iterations):
        start, target = given.pair(it, o.min_start_epoch, o.max_start_epoch, o.expert_epochs)
        theta = leaf(start)
        for step, rows in enumerate(given.batches(it, o)):
            x, y = given.windows(it, step, images[rows], given.labels[rows])
            loss = cross_entropy(logits(given.network, theta, given.augment(it, step, x)), y)
            theta = theta - lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
        distances = (theta - target) ** 2
        kept = slice(None) if keep is None else keep(distances.detach())
        matched = distances[kept].sum() / ((start - target) ** 2)[kept].sum()
        images_gradient, lr_gradient = torch.autograd.grad(matched, (images, lr))
        images_gradient[:frozen] = 0
        images_velocity = 0.5 * images_velocity + images_gradient
        lr_velocity = 0.5 * lr_velocity + lr_gradient
        images = leaf(images - o.lr_img * images_velocity)
        lr = leaf(lr - o.lr_lr * lr_velocity)
        learned = {"loss": matched, "images": images, "lr": lr}
        if decay is not None:
            average = decay * average + (1 - decay) * images.detach()
            learned["average"] = average
        yield learned


def sgd(network, theta, x, y, lr, orders, batch, *, momentum=0.0, decay=0.0, drop_after=None):
    """Weights after each epoch; behind one of them a tenth of the rate, and no momentum yet."""
    velocity, after = 0.0, []
    for epoch, order in enumerate(orders):
        for begin in range(0, len(order), batch):
            rows, at = order[begin : begin + batch], leaf(theta)
            loss = cross_entropy(logits(network, at, x[rows]), y[rows])
            gradient = torch.autograd.grad(loss, at)[0] + decay * theta
            velocity = momentum * velocity + gradient
            theta = theta - lr * velocity
        if epoch == drop_after:
            lr, velocity = 0.1 * lr, 0.0
        after.append(theta)
    return after


def tesla(given, o, iterations=3, *, factor, teacher):
    """TESLA's two passes; `factor` is 2 as meant and 1 as released."""
    images, labels = given.images.clone(), given.labels
    lr = torch.tensor(given.lr, dtype=torch.float64)
    images_velocity = lr_velocity = 0.0
    criterion = soft_cross_entropy if teacher else cross_entropy
    for it in range(iterations):
        start, target = given.pair(it, o.min_start_epoch, o.max_start_epoch, o.expert_epochs)
        if teacher:
            labels = logits(given.network, target, images).detach()
        batches = given.batches(it, o)
        thetas, total = [start], torch.zeros_like(start)
        for rows in batches:
            theta = leaf(thetas[-1])
            loss = criterion(logits(given.network, theta, images[rows]), labels[rows])
            gradient = torch.autograd.grad(loss, theta)[0]
            total = total + gradient
            thetas.append(thetas[-1] - lr * gradient)
        scale = ((start - target) ** 2).sum()
        v = lr * (target - start) + lr**2 * total
        images_gradient = torch.zeros_like(images)
        for theta, rows in zip(thetas[:-1], batches, strict=True):
            theta, x = leaf(theta), leaf(images[rows])
            loss = criterion(logits(given.network, theta, x), labels[rows])
            gradient = torch.autograd.grad(loss, theta, create_graph=True)[0]
            images_gradient[rows] += factor * torch.autograd.grad(v @ gradient / scale, x)[0]
        lr_gradient = -2 * total @ (thetas[-1] - target) / scale
        images_velocity = 0.5 * images_velocity + images_gradient
        lr_velocity = 0.5 * lr_velocity + lr_gradient
        images = images - o.lr_img * images_velocity
        lr = lr - o.lr_lr * lr_velocity
        matched = ((thetas[-1] - target) ** 2).sum() / scale
        yield {"loss": matched, "images": images, "lr": lr} | (
            {"labels": labels} if teacher else {}
        )


def grown(it, o):
    """DATM's end of the range of start epochs."""
    low, high = o.current_max_start_epoch, o.max_start_epoch
    return min(low + int((high - low) * it / o.expansion_end_epoch), high)


def datm(given, o, iterations=3, keep=lambda distances: distances == distances):
    """DATM; and PAD, where `keep` tells of squared distances which count."""
    images, labels = leaf(given.images), leaf(given.labels)
    lr = leaf(torch.tensor(given.lr, dtype=torch.float64))
    images_velocity = labels_velocity = lr_velocity = 0.0
    for it in range(iterations):
        start, target = given.pair(it, o.min_start_epoch, grown(it, o), o.expert_epochs)
        theta = leaf(start)
        for step, rows in enumerate(given.batches(it, o)):
            x, y = given.windows(it, step, images[rows], labels[rows])
            loss = soft_cross_entropy(logits(given.network, theta, x), y)
            theta = theta - lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
        distances = (theta - target) ** 2
        kept = keep(distances.detach())
        matched = distances[kept].sum() / ((start - target) ** 2)[kept].sum()
        if matched <= o.threshold:
            gradients = torch.autograd.grad(matched, (images, labels, lr))
            images_velocity = 0.5 * images_velocity + gradients[0]
            labels_velocity = 0.9 * labels_velocity + gradients[1]
            lr_velocity = 0.5 * lr_velocity + gradients[2]
            images = leaf(images - o.lr_img * images_velocity)
            labels = leaf(labels - o.lr_y * labels_velocity)
            lr = leaf(lr - o.lr_lr * lr_velocity)
        yield {"loss": matched, "images": images, "labels": labels, "lr": lr}


def datm_tesla(given, o, iterations=3):
    """DATM with the two passes, which give the labels' gradient too."""
    images, labels = given.images.clone(), given.labels.clone()
    lr = torch.tensor(given.lr, dtype=torch.float64)
    images_velocity = labels_velocity = lr_velocity = 0.0
    for it in range(iterations):
        start, target = given.pair(it, o.min_start_epoch, grown(it, o), o.expert_epochs)
        batches, total = given.batches(it, o), torch.zeros_like(start)
        thetas = [start]
        for rows in batches:
            theta = leaf(thetas[-1])
            loss = soft_cross_entropy(logits(given.network, theta, images[rows]), labels[rows])
            gradient = torch.autograd.grad(loss, theta)[0]
            total = total + gradient
            thetas.append(thetas[-1] - lr * gradient)
        scale = ((start - target) ** 2).sum()
        matched = ((thetas[-1] - target) ** 2).sum() / scale
        if matched <= o.threshold:
            v = lr * (target - start) + lr**2 * total
            images_gradient, labels_gradient = torch.zeros_like(images), torch.zeros_like(labels)
            for theta, rows in zip(thetas[:-1], batches, strict=True):
                theta, x, y = leaf(theta), leaf(images[rows]), leaf(labels[rows])
                loss = soft_cross_entropy(logits(given.network, theta, x), y)
                gradient = torch.autograd.grad(loss, theta, create_graph=True)[0]
                direct = torch.autograd.grad(2 * v @ gradient / scale, (x, y))
                images_gradient[rows] += direct[0]
                labels_gradient[rows] += direct[1]
            images_velocity = 0.5 * images_velocity + images_gradient
            labels_velocity = 0.9 * labels_velocity + labels_gradient
            lr_velocity = 0.5 * lr_velocity - 2 * total @ (thetas[-1] - target) / scale
            images = images - o.lr_img * images_velocity
            labels = labels - o.lr_y * labels_velocity
            lr = lr - o.lr_lr * lr_velocity
        yield {"loss": matched, "images": images, "labels": labels, "lr": lr}


def datm_start(network, real, real_labels, orders, ipc, ends):
    """Start images and label logits: `orders` are each class's rows, `ends` the experts' weights.

    An image is taken if the first expert is right about it, then the next one's are added; its
    label is the mean of the logits of the experts that are right.
    """
    rows = []
    for label, order in enumerate(orders):
        taken = []
        for theta in ends:
            right = logits(network, theta, real[order]).argmax(1) == label
            for row in order[right].tolist():
                if row not in taken and len(taken) < ipc:
                    taken.append(row)
        rows += taken
    outputs = [logits(network, theta, real[rows]).detach() for theta in ends]
    labels = []
    for k, row in enumerate(rows):
        right = [given[k] for given in outputs if given[k].argmax() == real_labels[row]]
        labels.append(sum(right) / len(right))
    return real[rows], torch.stack(labels)
