"""What the commands can be told: typed keys with the field's own names, their text for --help."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from fastmtt.errors import FastmttError
from fastmtt.ranges import check_ranges

Gradient = Literal["exact", "tesla"] | int
C = TypeVar("C", bound="BaseConfig")

# Keys by subject, in the order of --help.
_DATA = "dataset data_path subset res download zca"
_NETWORK = "model dsa dsa_strategy batch_train"
_MACHINE = "device backend threads seed"


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """What all commands share.

    Attributes:
        dataset: Data set; an unknown name is answered with the known ones [MTT].
        data_path: Folder the data lie in, or an .npz archive of JPEG images [MTT].
        subset: Subset of dataset ImageNet: imagenette, imagewoof, imagefruit, imageyellow,
            imagemeow or imagesquawk [MTT].
        res: Height and width images are brought to (null, the data set's own; 128 for ImageNet)
            [MTT].
        held_out: Training images of each class kept out of training, to select a set by.
        download: Fetch the data where they are missing.
        model: Network, by the field's names: ConvNet, ConvNetD4, ConvNetW32 and so on [MTT].
        zca: Whiten the images by ZCA instead of normalising them [MTT].
        dsa: Augment by DSA (differentiable siamese augmentation) [MTT].
        dsa_strategy: DSA's operations, joined by underscores; one is drawn for each batch [MTT].
        buffer_path: Folder of the experts' trajectories [MTT].
        batch_train: Real images, or distilled ones in evaluation, in a training batch [MTT].
        device: auto, cpu, cuda or cuda:<number>; DATM's list of GPUs is read as auto.
        backend: Force one backend: reference (plain torch) or cpu (compiled); null, the fitting.
        threads: CPU threads (null, as torch chooses).
        seed: Seed of every draw; two runs with one seed are equal to the bit.
        resume: Go on where a killed run stopped, to the bits it would have reached.
    """

    dataset: str = "CIFAR10"
    data_path: str = "data"
    subset: str = "imagenette"
    res: int | None = None
    held_out: int = 0
    download: bool = False
    model: str = "ConvNet"
    zca: bool = False
    dsa: bool = True
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    buffer_path: str = "buffers"
    batch_train: int = 256
    device: str = "auto"
    backend: Literal["reference", "cpu"] | None = None
    threads: int | None = None
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class BufferConfig(BaseConfig):
    """Train experts on real data and store their trajectories.

    Attributes:
        num_experts: Number of experts; those already stored are kept [MTT].
        train_epochs: Epochs of each expert; its start and every epoch's end are stored [MTT].
        lr_teacher: The experts' learning rate [MTT].
        mom: The experts' momentum [MTT].
        l2: The experts' weight decay [MTT].
        decay: Drop the experts' learning rate to a tenth halfway [MTT].
        experts_at_once: Experts trained side by side (null, as fits); changes no bit.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "data": f"{_DATA} held_out",
        "network and its batches": _NETWORK,
        "experts": "buffer_path num_experts train_epochs lr_teacher mom l2 decay experts_at_once",
        "run": f"{_MACHINE} resume",
    }

    num_experts: int = 100
    train_epochs: int = 50
    lr_teacher: float = 0.01
    mom: float = 0.0
    l2: float = 0.0
    decay: bool = False
    experts_at_once: int | None = None


@dataclass(frozen=True, kw_only=True)
class DistillConfig(BaseConfig):
    """Distil a data set by matching training trajectories; missing experts are trained first.

    Attributes:
        method: The method whose choices apply where no key overrides them.
        ipc: Distilled images a class [MTT].
        Iteration: Number of the last outer iteration; as in the field, it counts from 0 [MTT].
        eval_it: Outer iterations between evaluations [MTT].
        num_eval: Networks trained in an evaluation [MTT].
        epoch_eval_train: Number of the last epoch of an evaluation, counted from 0 [MTT].
        lr_img: Learning rate of the distilled images [MTT].
        lr_lr: Learning rate of the student's learning rate [MTT].
        lr_teacher: The student's learning rate at the start; distillation learns it [MTT].
        expert_lr: Learning rate of the experts this command trains itself.
        num_experts: Number of experts; those already stored need only be of this network and data
            [MTT's buffer].
        train_epochs: Epochs of each expert (null, as many as matching reads) [MTT's buffer].
        batch_syn: Distilled images in a student's batch (null, all) [MTT].
        pix_init: Images start as real ones or as noise [MTT].
        expert_epochs: Epochs between the start and the target on a trajectory [MTT].
        syn_steps: The student's steps from the start [MTT].
        min_start_epoch: First epoch a segment may start at [DATM].
        max_start_epoch: Segments start before this epoch [MTT].
        no_aug: Leave DSA out of the student's steps; evaluation keeps it [MTT].
        max_experts: Use the first so many experts only (null, all); MTT counts them in each file
            of ten.
        skip_first_eva: Do not evaluate before the first iteration [DATM].
        gradient: exact, tesla as in TESLA (arXiv 2211.10586), or the number of last steps a
            truncated one goes back through (null, the method's).
        segments: Segments in an outer step; their losses' mean is the step's.
        rng: Where batches and augmentation are drawn: counter is equal on every device and
            however segments are grouped, published replays the published programs' order.
        memory: Bytes kept of a student's steps beyond weights and gradients (null, none); changes
            no bit.
        save_path: Folder of the runs.
        run_name: The run's folder (null, the method and the time).
        logger: Log to tensorboard or wandb as well, where installed (null, to files alone).
        project: The project's name at wandb [DATM].
        published: Published accuracy in per cent, to stand beside the result.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "data": f"{_DATA} held_out",
        "network and its batches": _NETWORK,
        "experts": "buffer_path num_experts train_epochs expert_lr max_experts",
        "distilled images": "ipc pix_init lr_img lr_lr lr_teacher batch_syn Iteration",
        "matching": "method expert_epochs syn_steps min_start_epoch max_start_epoch no_aug "
        "gradient segments rng memory",
        "evaluation": "eval_it num_eval epoch_eval_train skip_first_eva published",
        "run": f"save_path run_name resume logger project {_MACHINE}",
    }

    method: str = "mtt"
    ipc: int = 1
    Iteration: int = 5000
    eval_it: int = 100
    num_eval: int = 5
    epoch_eval_train: int = 1000
    lr_img: float = 1000.0
    lr_lr: float = 1e-5
    lr_teacher: float = 0.01
    expert_lr: float = 0.01
    num_experts: int = 100
    train_epochs: int | None = None
    batch_syn: int | None = None
    pix_init: Literal["real", "noise"] = "real"
    expert_epochs: int = 3
    syn_steps: int = 20
    min_start_epoch: int = 0
    max_start_epoch: int = 25
    no_aug: bool = False
    max_experts: int | None = None
    skip_first_eva: bool = False
    gradient: Gradient | None = None
    segments: int = 1
    rng: Literal["counter", "published"] = "counter"
    memory: int | None = None
    save_path: str = "logged_files"
    run_name: str | None = None
    logger: Literal["tensorboard", "wandb"] | None = None
    project: str = "fastmtt"
    published: float | None = None

    @property
    def expert_length(self) -> int:
        """Epochs the experts are trained for: `train_epochs`, or as many as matching reads."""
        return self.train_epochs or self.max_start_epoch - 1 + self.expert_epochs

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.min_start_epoch >= self.max_start_epoch:
            raise FastmttError(
                f"min_start_epoch is {self.min_start_epoch} and max_start_epoch "
                f"{self.max_start_epoch}, wanted the first below the second"
            )
        if self.max_experts is not None and self.max_experts > self.num_experts:
            raise FastmttError(
                f"max_experts is {self.max_experts} and num_experts {self.num_experts}, wanted at "
                "most as many; raise num_experts"
            )
        last = self.max_start_epoch - 1 + self.expert_epochs
        if last > self.expert_length:
            raise FastmttError(
                f"segments end at epoch {last} (max_start_epoch - 1 + expert_epochs) and experts "
                f"at train_epochs {self.train_epochs}, wanted experts at least as long; lower "
                "max_start_epoch or raise train_epochs"
            )


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
        download: Fetch the data where they are missing.
        model: Network to train [MTT].
        zca: Whiten the images by ZCA [MTT].
        dsa: Augment by DSA [MTT].
        dsa_strategy: DSA's operations, joined by underscores [MTT].
        batch_train: Images in a training batch [MTT].
        device: auto, cpu, cuda or cuda:<number>.
        backend: Force one backend: reference or cpu.
        threads: CPU threads.
        seed: Seed of every draw.
        num_eval: Networks trained [MTT].
        epoch_eval_train: Number of the last epoch, counted from 0 [MTT].
        compare: Train on as many random real images and on all real images as well.
        which: A run's set that was best on test images, best on held-out ones, or the last.
        resume: Go on where a killed evaluation stopped.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "distilled images": "run which data_dir label_dir lr_dir lr",
        "data": _DATA,
        "network and its batches": _NETWORK,
        "evaluation": "num_eval epoch_eval_train compare",
        "run": f"{_MACHINE} resume",
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
    download: bool | None = None
    model: str | None = None
    zca: bool | None = None
    dsa: bool | None = None
    dsa_strategy: str | None = None
    batch_train: int | None = None
    device: str | None = None
    backend: Literal["reference", "cpu"] | None = None
    threads: int | None = None
    seed: int | None = None
    num_eval: int = 5
    epoch_eval_train: int = 1000
    compare: bool = False
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

    def applied_to(self, made_with: C) -> C:
        """Give the run's configuration with the shared keys that are set here in their place.

        `buffer_path` and `held_out` are the run's alone: another split would be scored on images
        the set was distilled from.
        """
        shared = (field.name for field in dataclasses.fields(BaseConfig))
        asked = {name: getattr(self, name, None) for name in shared}
        changes = {name: value for name, value in asked.items() if value is not None}
        return dataclasses.replace(made_with, **changes)
