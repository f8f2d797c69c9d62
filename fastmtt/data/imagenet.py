"""ImageNet: its six named subsets of ten classes, and all thousand."""

import difflib
from pathlib import Path

from fastmtt.data.folders import (
    class_folders,
    find_splits,
    found,
    listed,
    read_splits,
    same_classes,
)
from fastmtt.data.raw import RawImages, Request
from fastmtt.errors import FastmttError

# Class index (the place of its wnid among the sorted 1000) and wnid; a label is a place here.
_SUBSETS: dict[str, dict[int, str]] = {
    "imagenette": {
        **{0: "n01440764", 217: "n02102040", 482: "n02979186", 491: "n03000684"},
        **{497: "n03028079", 566: "n03394916", 569: "n03417042", 571: "n03425413"},
        **{574: "n03445777", 701: "n03888257"},
    },
    "imagewoof": {
        **{193: "n02096294", 182: "n02093754", 258: "n02111889", 162: "n02088364"},
        **{155: "n02086240", 167: "n02089973", 159: "n02087394", 273: "n02115641"},
        **{207: "n02099601", 229: "n02105641"},
    },
    "imagefruit": {
        **{953: "n07753275", 954: "n07753592", 949: "n07745940", 950: "n07747607"},
        **{951: "n07749582", 957: "n07768694", 952: "n07753113", 945: "n07720875"},
        **{943: "n07718472", 948: "n07742313"},
    },
    "imageyellow": {
        **{309: "n02206856", 986: "n12057211", 954: "n07753592", 951: "n07749582"},
        **{987: "n12144580", 779: "n04146614", 599: "n03530642", 291: "n02129165"},
        **{72: "n01773157", 11: "n01531178"},
    },
    "imagemeow": {
        **{281: "n02123045", 282: "n02123159", 283: "n02123394", 284: "n02123597"},
        **{285: "n02124075", 291: "n02129165", 292: "n02129604", 290: "n02128925"},
        **{289: "n02128757", 287: "n02127052"},
    },
    "imagesquawk": {
        **{84: "n01806143", 130: "n02007558", 88: "n01818515", 144: "n02051845"},
        **{145: "n02056570", 22: "n01614925", 96: "n01843383", 9: "n01518878"},
        **{100: "n01860187", 89: "n01819313"},
    },
    "imagenet10": {  # IDC's
        **{452: "n02869837", 64: "n01749939", 374: "n02488291", 236: "n02107142"},
        **{993: "n13037406", 176: "n02091831", 882: "n04517823", 904: "n04589890"},
        **{503: "n03062245", 74: "n01773797"},
    },
}


def read_subset(request: Request) -> RawImages:
    """Read ten classes of ImageNet from train/<wnid> and val/<wnid>.

    The folders may hold all classes or these ten. The published programs use ILSVRC's own split
    into train and val, not the one of fastai's imagenette2.

    Raises:
        FastmttError: The subset is unknown, a folder is missing, an image is damaged.
    """
    wanted = _subset(request.subset)
    root, _ = find_splits(_roots(request.path), ["val"])
    for split in ("train", "val"):
        lacking = set(wanted.values()) - set(class_folders(root / split))
        if lacking:
            raise FastmttError(
                f"{root / split} lacks {len(lacking)} of {request.subset}'s ten class folders "
                f"({', '.join(sorted(lacking)[:3])}), {found(root / split)}; sort the images "
                "into folders named by their class's wnid"
            )
    return read_splits(
        listed(root / "train", list(wanted.values())),
        listed(root / "val", list(wanted.values())),
        _names(list(wanted)),
        path=root,
        source=f"the folders of ImageNet, {request.subset}",
        res=request.res,
        crop=request.crop,
        channels=3,
        show=request.show,
    )


def read_1k(request: Request) -> RawImages:
    """Read all of ImageNet from train/<class> and val/<class>, classes sorted by folder name.

    Images of any size, as TESLA's pre-resized ones, or DATM's and PAD's .pt files: one float
    tensor [3,H,W] in [0,1] each.

    Raises:
        FastmttError: A folder is missing, the classes are not 1000, an image is damaged.
    """
    root, _ = find_splits(_roots(request.path), ["val"])
    classes = class_folders(root / "train")
    if len(classes) != 1000:
        raise FastmttError(
            f"{root / 'train'} has {len(classes)} class folders, ImageNet1K has 1000; "
            f"{found(root / 'train')}"
        )
    same_classes(root / "train", root / "val", classes, class_folders(root / "val"))
    return read_splits(
        listed(root / "train", classes, tensors=True),
        listed(root / "val", classes, tensors=True),
        tuple(classes),
        path=root,
        source="the folders of ImageNet",
        res=request.res,
        crop=request.crop,
        channels=3,
        show=request.show,
    )


def _roots(path: Path) -> list[Path]:
    return [path, path / "ILSVRC" / "Data" / "CLS-LOC"]


def _subset(name: str) -> dict[int, str]:
    if name == "imagenet100":
        raise FastmttError(
            "of IDC's hundred classes of ImageNet only the first ten are known here, imagenet10; "
            "put the hundred class folders into train and val of a folder of their own and give "
            "--dataset folder --data_path FOLDER --res 224 --crop"
        )
    if name not in _SUBSETS:
        near = difflib.get_close_matches(name.lower(), _SUBSETS, 1, 0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise FastmttError(
            f"no subset of ImageNet is called {name!r}; known are {', '.join(_SUBSETS)}{hint}"
        )
    return _SUBSETS[name]


def _names(indices: list[int]) -> tuple[str, ...]:
    from torchvision.models import ResNet18_Weights

    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    return tuple(categories[index] for index in indices)
