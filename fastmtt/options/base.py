"""Keys that several commands share."""

from dataclasses import dataclass, fields
from typing import Literal

from fastmtt.errors import FastmttError
from fastmtt.ranges import check_ranges

# Keys by subject, in the order of --help.
DATA = "dataset data_path subset res crop download zca"
NETWORK = "model dsa dsa_strategy batch_train"
MACHINE = "device backend precision no_graph threads seed"
CURRICULUM = (
    "init_ratio add_end_epoch rm_epoch_first rm_epoch_second rm_easy_ratio_first "
    "rm_easy_ratio_second"
)
EXPERTS = (
    f"rho_max rho_min alpha adaptive sort_method indices_path {CURRICULUM} ratio remove_strategy "
    "sparse_ratio"
)


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """What all commands share.

    Attributes:
        dataset: Data set; an unknown name is answered with the known ones [MTT].
        data_path: Folder the data lie in, or an .npz archive of JPEG images [MTT].
        subset: Subset of dataset ImageNet: imagenette, imagewoof, imagefruit, imageyellow,
            imagemeow, imagesquawk or IDC's imagenet10 [MTT].
        res: Height and width images are brought to (null, the data set's own; 128 for ImageNet)
            [MTT].
        crop: Bring the shorter side of ImageNet's or a folder's images to res, antialiased, and cut
            out the middle [IDC]; without it both sides are brought to res [MTT].
        held_out: Training images of each class kept out of training, to select a set by.
        download: Fetch the data where they are missing.
        model: Network, by the field's names: ConvNet, ConvNetD4, VGG11, ResNet18 and so on, or
            timm:NAME; docs/networks.md lists them [MTT].
        zca: Whiten the images by ZCA instead of normalising them [MTT].
        dsa: Augment by DSA (differentiable siamese augmentation) [MTT].
        dsa_strategy: DSA's operations, joined by underscores; one is drawn for each batch [MTT].
        batch_train: Images in a training batch [MTT].
        device: auto, cpu, cuda or cuda:<number>; DATM's list of GPUs is read as auto.
        backend: Force one backend: reference (plain torch), cpu (compiled), triton or cuda (a
            GPU's); null, the fitting.
        precision: What convolutions of 16 input channels and more multiply: fp32, tf32 (a GPU's),
            or bf16, which sums in fp32 and is faster where the processor has instructions for it;
            null, fp32 on a CPU and tf32 on a GPU.
        no_graph: Launch a GPU's kernels one by one instead of as CUDA graphs; changes no bit.
        threads: CPU threads (null, as torch chooses).
        seed: Seed of every draw; two runs with one seed are equal to the bit.
        resume: Go on where a killed run stopped, to the bits it would have reached.
    """

    dataset: str = "CIFAR10"
    data_path: str = "data"
    subset: str = "imagenette"
    res: int | None = None
    crop: bool = False
    held_out: int = 0
    download: bool = False
    model: str = "ConvNet"
    zca: bool = False
    dsa: bool = True
    dsa_strategy: str = "color_crop_cutout_flip_scale_rotate"
    batch_train: int = 256
    device: str = "auto"
    backend: Literal["reference", "cpu", "triton", "cuda"] | None = None
    precision: Literal["fp32", "tf32", "bf16"] | None = None
    no_graph: bool = False
    threads: int | None = None
    seed: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, kw_only=True)
class ExpertConfig(BaseConfig):
    """How experts are trained; the keys `buffer` and `distill` share.

    Attributes:
        method: The method whose choices apply where no key overrides them: mtt, ftd, tesla, datm,
            pad, pdd or idc.
        buffer_path: Folder of the experts' trajectories [MTT].
        num_experts: Number of experts; those already stored are kept, and for a distillation need
            only be of its network and data [MTT].
        rho_max: Radius of GSAM's perturbation (null, experts are trained by plain SGD) [FTD].
        rho_min: The same number; the published schedule between the two is constant [FTD].
        alpha: GSAM's weight of the part of the gradient it subtracts [FTD].
        adaptive: GSAM measures each weight by its size [FTD].
        sort_method: Index file of each class's training images from easy to hard, a name in
            indices_path or a path (null, no curriculum) [PAD].
        indices_path: Folder of the index files; fastmtt.scores writes them.
        init_ratio: Share of each class an expert begins with, easy ones first [PAD].
        add_end_epoch: Epoch from which it sees all images [PAD].
        rm_epoch_first: Epoch after which it sees no more of the easiest [PAD].
        rm_epoch_second: Epoch after which it sees even fewer [PAD].
        rm_easy_ratio_first: Share of each class that is left out first [PAD].
        rm_easy_ratio_second: Share that is left out then [PAD].
        ratio: Share of each class that is left out from the beginning [PAD].
        remove_strategy: Which are left out so, the hard or the easy ones [PAD].
        sparse_ratio: Share of an expert's convolution weights that is pruned at random, and stays
            zero [PDD's buffer].
    """

    method: str = "mtt"
    buffer_path: str = "buffers"
    num_experts: int = 100
    rho_max: float | None = None
    rho_min: float | None = None
    alpha: float = 0.4
    adaptive: bool = True
    sort_method: str | None = None
    indices_path: str = "data_indices"
    init_ratio: float = 1.0
    add_end_epoch: int = 100
    rm_epoch_first: int = 40
    rm_epoch_second: int = 60
    rm_easy_ratio_first: float = 0.1
    rm_easy_ratio_second: float = 0.1
    ratio: float = 0.0
    remove_strategy: Literal["hard", "easy"] = "hard"
    sparse_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho_min is not None and self.rho_min != self.rho_max:
            raise FastmttError(
                f"rho_min is {self.rho_min} and rho_max {self.rho_max}, wanted one number: with a "
                "constant learning rate GSAM's radius is constant; leave rho_min out"
            )
        complaint = self._images_at_odds()
        if complaint:
            raise FastmttError(complaint)

    def _images_at_odds(self) -> str:
        """Say which choices of an expert's images mean nothing or contradict; empty: none."""
        usual = {field.name: field.default for field in fields(self)}
        chosen = {
            name: getattr(self, name)
            for name in (*CURRICULUM.split(), "ratio", "remove_strategy")
            if getattr(self, name) != usual[name]
        }
        if chosen and self.sort_method is None:
            name, value = next(iter(chosen.items()))
            return (
                f"{name} is {value}, but nothing says which images are hard; name an index file by "
                "sort_method (fastmtt.scores writes one)"
            )
        both = [name for name in CURRICULUM.split() if name in chosen]
        if self.ratio and both:
            return (
                f"ratio is {self.ratio}, which leaves images out from the beginning, and {both[0]} "
                f"is {chosen[both[0]]}, which is a curriculum's; set ratio to 0 or leave "
                f"{' and '.join(both)} out"
            )
        if not self.ratio and "remove_strategy" in chosen:
            return (
                f"remove_strategy is {self.remove_strategy}, but ratio leaves no images out; set "
                "ratio"
            )
        if self.rm_epoch_first > self.rm_epoch_second:
            return (
                f"rm_epoch_first is {self.rm_epoch_first} and rm_epoch_second "
                f"{self.rm_epoch_second}, wanted the first at most the second"
            )
        return ""
