"""The published programs' pools of networks that a set is evaluated on."""

from __future__ import annotations

from fastmtt.errors import FastmttError

POOLS = {
    "M": ("ConvNet", "AlexNet", "VGG11", "ResNet18_AP", "ResNet18"),
    "W": ("ConvNetW32", "ConvNetW64", "ConvNetW128", "ConvNetW256"),
    "D": ("ConvNetD1", "ConvNetD2", "ConvNetD3", "ConvNetD4"),
    "A": ("ConvNetAS", "ConvNetAR", "ConvNetAL"),
    "P": ("ConvNetNP", "ConvNetMP", "ConvNetAP"),
    "N": ("ConvNetNN", "ConvNetBN", "ConvNetLN", "ConvNetIN", "ConvNetGN"),
    "BN": (
        *("ConvNet", "ConvNetBN", "ResNet18", "ResNet18BN"),
        *("AlexNet", "VGG11", "ResNet18_AP"),
    ),
}


def pool(mode: str | None, model: str, model_eval: str | None) -> list[str]:
    """The networks of an ``eval_mode``.

    Args:
        mode: None for ``model`` itself; "S" for it with everything from "BN" on cut off its name;
            "C" for it and ConvNet; "other" for ``model_eval``; else a row of :data:`POOLS`. DATM's
            and PAD's "M" goes without ResNet18_AP; this is MTT's.
        model: the network the set was distilled with.
        model_eval: names joined by commas.

    Raises:
        FastmttError: a name is given twice or is empty.
    """
    match mode:
        case None:
            return [model]
        case "S":
            return [model.partition("BN")[0]]
        case "C":
            return [*dict.fromkeys((model, "ConvNet"))]
        case "other":
            names = [name.strip() for name in (model_eval or "").split(",")]
            if not all(names) or len(set(names)) < len(names):
                raise FastmttError(
                    f"model_eval is {model_eval!r}, wanted networks joined by commas, each once"
                )
            return names
        case _:
            return [*POOLS[mode]]
