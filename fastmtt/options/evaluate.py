"""The keys of `python -m fastmtt.evaluate`."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from fastmtt.errors import FastmttError
from fastmtt.options.base import DATA, MACHINE, NETWORK, BaseConfig
from fastmtt.ranges import check_ranges

C = TypeVar("C", bound=BaseConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Train fresh networks on a distilled set and test them on real data.

    Keys that are null take what the run was made with.

    Attributes:
        run: A run's folder, or a file of distilled images of ours (null with data_dir).
        data_dir: A published program's file of distilled images (images_best.pt) [DATM].
        label_dir: Its file of labels (null, in the images' file or class by class) [DATM].
        lr_dir: Its file of the learning rate [DATM].
        lr: The learning rate to train with (null, the set's own).
        dataset: Data set to test on [MTT].
        data_path: Folder the data lie in, or an .npz archive of JPEG images [MTT].
        subset: Subset of dataset ImageNet [MTT].
        res: Height and width images are brought to [MTT].
        crop: Bring their shorter side to res and cut out the middle [IDC].
        download: Fetch the data where they are missing.
        model: Network to train [MTT].
        zca: Whiten the images by ZCA [MTT].
        dsa: Augment by DSA [MTT].
        dsa_strategy: DSA's operations, joined by underscores [MTT].
        batch_train: Images in a training batch [MTT].
        device: auto, cpu, cuda or cuda:<number>.
        backend: Force one backend: reference, cpu, triton or cuda.
        precision: What convolutions of 16 input channels and more multiply: fp32, tf32 or
            bf16.
        no_graph: Launch a GPU's kernels one by one.
        threads: CPU threads.
        seed: Seed of every draw.
        eval_mode: Pool of networks to train in place of model: S, it without BN; M, several
            architectures; W, widths; D, depths; A, activations; P, poolings; N, norms; C, it and
            ConvNet; BN, architectures with and without batch norm; other, model_eval [MTT].
        model_eval: Networks of eval_mode other, joined by commas [MTT].
        num_eval: Networks trained, of each architecture [MTT].
        epoch_eval_train: Number of the last epoch, counted from 0; by protocol idc, of
            epochs (null, as published: 1000, and what docs/networks.md lists for idc) [MTT].
        protocol: How networks are trained: mtt as in the trajectory-matching family, idc as in IDC,
            by CutMix, its augmentation and lr 0.01 unless lr is given [IDC].
        num_val: Tests of a network by protocol idc, evenly over its epochs; the best is told beside
            the last (null, 4, and 50 on each stage of a staged run) [IDC].
        same_compute: Of a set whose stored images hold several, train for as many times fewer
            epochs by protocol idc [IDC].
        factor: Of IDC's file in data_dir, cells on a side of a stored image [IDC].
        compare: Train on as many random real images and on all real images as well.
        stage_init: Of a staged run, whose networks are trained on one stage's images after
            another's: fresh weights for each network, or as released: the first expert's for all
            [PDD].
        which: A run's set that was best on test images, best on held-out ones, or the last.
        resume: Go on where a killed evaluation stopped.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "distilled images": "run which data_dir label_dir lr_dir lr factor",
        "data": DATA,
        "network and its batches": NETWORK,
        "evaluation": "eval_mode model_eval protocol num_val num_eval epoch_eval_train "
        "same_compute stage_init compare",
        "run": f"{MACHINE} resume",
    }

    run: str | None = None
    data_dir: str | None = None
    label_dir: str | None = None
    lr_dir: str | None = None
    lr: float | None = None
    dataset: str | None = None
    data_path: str | None = None
    subset: str | None = None
    res: int | None = None
    crop: bool | None = None
    download: bool | None = None
    model: str | None = None
    zca: bool | None = None
    dsa: bool | None = None
    dsa_strategy: str | None = None
    batch_train: int | None = None
    device: str | None = None
    backend: Literal["reference", "cpu", "triton", "cuda"] | None = None
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    no_graph: bool | None = None
    threads: int | None = None
    seed: int | None = None
    eval_mode: Literal["S", "M", "W", "D", "A", "P", "N", "C", "BN", "other"] | None = None
    model_eval: str | None = None
    num_eval: int = 5
    epoch_eval_train: int | None = None
    protocol: Literal["mtt", "idc"] = "mtt"
    num_val: int | None = None
    same_compute: bool = False
    factor: int = 1
    compare: bool = False
    stage_init: Literal["fresh", "released"] = "fresh"
    which: Literal["best", "held_out", "last"] = "best"
    resume: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.run is None) == (self.data_dir is None):
            raise FastmttError(
                "evaluate wants one of a run's folder and data_dir, a published program's file of "
                f"distilled images; got {'both' if self.run else 'neither'}"
            )
        if self.data_dir is not None and self.which != "best":
            raise FastmttError(
                f"which is {self.which}, but it chooses among a run's sets and data_dir names one "
                "file; leave it out"
            )

        if (self.eval_mode == "other") != (self.model_eval is not None):
            raise FastmttError(
                f"eval_mode is {self.eval_mode or 'null'} and model_eval "
                f"{self.model_eval or 'null'}, but other is the mode that names networks by "
                "model_eval; give both or neither"
            )
        if self.protocol == "idc" and self.lr_dir is not None:
            raise FastmttError(
                "protocol idc trains at lr 0.01 whatever a set was distilled with; leave out "
                "lr_dir, or give lr"
            )
        if self.protocol != "idc" and self.num_val is not None:
            raise FastmttError(
                f"num_val is {self.num_val}, but protocol {self.protocol} tests a network once, at "
                "the end; leave it out, or set protocol to idc"
            )
        if self.protocol != "idc" and self.same_compute:
            raise FastmttError(
                f"same_compute is true, but protocol {self.protocol} does not ask what a stored "
                "image holds; leave it out, or set protocol to idc"
            )
        if self.factor != 1 and self.data_dir is None:
            raise FastmttError(
                f"factor is {self.factor}, but it decodes IDC's file in data_dir, and a run's set "
                "says itself how it is stored; leave it out"
            )
        if self.compare and self.eval_mode is not None:
            raise FastmttError(
                "compare trains one network on several sets, and eval_mode "
                f"{self.eval_mode} several networks on one; leave one of them out"
            )

    def applied_to(self, made_with: C) -> C:
        """Give the run's configuration with the shared keys that are set here in their place.

        `held_out` is the run's alone: another split would be scored on images the set was distilled
        from.
        """
        shared = (field.name for field in dataclasses.fields(BaseConfig))
        asked = {name: getattr(self, name, None) for name in shared}
        changes = {name: value for name, value in asked.items() if value is not None}
        return dataclasses.replace(made_with, **changes)
