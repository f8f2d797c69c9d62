"""Recognising a ConvNet by its structure, whoever wrote the class."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from fastmtt.ops.reference_block import EPS
from fastmtt.student.probe import is_chain

KINDS = ("conv", "norm", "act", "pool")  # of a block, by IDC's names
GROUP = len(KINDS)


class Structure(NamedTuple):
    """What the compiled ops need to know of a ConvNet.

    Attributes:
        channels: Cin of each block, and the last block's Cout: depth + 1 numbers.
        border: zero pixels round the image before the first block's own padding of 1.
        grid: height and width of the last block's output.
        classes: K.
        grouped: whether the public order is IDC's, all convolutions before all norms.
    """

    channels: tuple[int, ...]
    border: int
    grid: tuple[int, int]
    classes: int
    grouped: bool = False

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.channels) - 1


def find_structure(module: nn.Module, image_shape: tuple[int, ...]) -> Structure | str:
    """The module's ConvNet structure, or the reason why it has none.

    The layers (``features`` of blocks, or IDC's ``layers`` of lists, and ``classifier``) are
    matched on every call, as modules can be changed; their types exactly, as a subclass may compute
    something else. The module's own forward
    is proved once an image shape: its logits on random images equal those of the layers in a chain.
    """
    children = dict(module.named_children())
    classifier, named = children.pop("classifier", None), _layers(children)
    if named is None:
        return "its children are not `features` (nn.Sequential) and `classifier`"
    if type(classifier) is not nn.Linear or classifier.bias is None:
        return "its classifier is not nn.Linear with a bias"
    if any(_has_hooks(part) for part in module.modules()):
        return "its modules have hooks"
    layers, grouped = list(named.values()), "layers" in children
    if not layers or len(layers) % GROUP:
        return "its features are not blocks of convolution, norm, ReLU, pooling"
    if len(image_shape) != 3:
        return f"its inputs of shape {tuple(image_shape)} are not images (C, H, W)"

    border, grid = 0, (image_shape[1], image_shape[2])
    channels = [image_shape[0]]
    for block in range(0, len(layers), GROUP):
        conv, norm, relu, pool = layers[block : block + GROUP]
        reason = _conv_reason(conv, first=block == 0) or _rest_reason(conv, norm, relu, pool)
        if reason is not None:
            return f"block {block // GROUP + 1}: {reason}"
        assert type(conv) is nn.Conv2d and isinstance(conv.padding[0], int)
        if block == 0:
            border = conv.padding[0] - 1
            grid = (grid[0] + 2 * border, grid[1] + 2 * border)
        grid = (grid[0] // 2, grid[1] // 2)
        channels += [conv.out_channels]
    inputs = [layer.in_channels for layer in layers if type(layer) is nn.Conv2d]
    if inputs != channels[:-1] or classifier.in_features != channels[-1] * grid[0] * grid[1]:
        return f"its channels do not fit images of shape {tuple(image_shape)}"
    if [name for name, _ in module.named_parameters()] != _parameter_names(list(named), grouped):
        return "its parameters are not those of its layers alone, in order"
    if not is_chain(module, named, image_shape):
        return "its forward is not features, flatten, classifier"
    return Structure(tuple(channels), border, grid, classifier.out_features, grouped)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    )
    return any(hooks)


def _layers(children: dict[str, nn.Module]) -> dict[str, nn.Module] | None:
    """The layers before the classifier by their names, in the order in which they are called."""
    match children:
        case {"features": nn.Sequential() as features} if (
            len(children) == 1 and type(features) is nn.Sequential
        ):
            return {f"features.{i}": layer for i, layer in enumerate(features)}
        case {"layers": nn.ModuleDict() as kinds} if len(children) == 1 and tuple(kinds) == KINDS:
            lists = [kind for kind in kinds.values() if isinstance(kind, nn.ModuleList)]
            if len(lists) == GROUP and len({len(kind) for kind in lists}) == 1:
                blocks, named = range(len(lists[0])), dict(zip(KINDS, lists, strict=True))
                return {f"layers.{kind}.{i}": named[kind][i] for i in blocks for kind in KINDS}
    return None


def _parameter_names(layers: list[str], grouped: bool) -> list[str]:
    convs, norms = layers[0::GROUP], layers[1::GROUP]
    pairs = [name for pair in zip(convs, norms, strict=True) for name in pair]
    modules = [*convs, *norms] if grouped else pairs
    return [f"{m}.{p}" for m in [*modules, "classifier"] for p in ("weight", "bias")]


def _conv_reason(conv: nn.Module, *, first: bool) -> str | None:
    if type(conv) is not nn.Conv2d or conv.bias is None:
        return "no nn.Conv2d with a bias"
    pads = conv.padding
    plain = (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
    )
    square = isinstance(pads, tuple) and pads[0] == pads[1]
    padded = square and (pads[0] == 1 or (first and int(pads[0]) > 1))
    return None if plain and padded else "its convolution is not 3x3 with stride 1 and padding 1"


def _rest_reason(conv: nn.Module, norm: nn.Module, relu: nn.Module, pool: nn.Module) -> str | None:
    assert type(conv) is nn.Conv2d
    if not (
        type(norm) is nn.GroupNorm
        and norm.num_groups == norm.num_channels == conv.out_channels
        and norm.affine
        and norm.eps == EPS
    ):
        return "its norm is not GroupNorm with one channel a group, affine, eps 1e-5"
    if type(relu) is not nn.ReLU:
        return "its activation is not ReLU"
    if not (
        type(pool) is nn.AvgPool2d
        and pool.kernel_size in (2, (2, 2))
        and pool.stride in (2, (2, 2))
        and pool.padding in (0, (0, 0))
        and not pool.ceil_mode
        and pool.divisor_override in (None, 4)
    ):
        return "its pooling is not plain 2x2 averaging"
    return None
