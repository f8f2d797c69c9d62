"""DATM's and PAD's public configurations as a table, and as the files they are published in."""

from typing import Any

# data set, ipc, syn_steps, expert_epochs, batch_syn, lr_img, lr_lr, lr_y, threshold,
# min_start_epoch, current_max_start_epoch, max_start_epoch, expansion_end_epoch, ema_decay,
# eval_it, skip_first_eva, number of GPUs. Without a current_max_start_epoch the file says
# Sequential_Generation: False.
_DATM = """\
CIFAR10     1  80 2   10   100 1e-7  5 1.1   0  -  4    -  .995  500 True  1
CIFAR10    10  80 2  100   100 1e-5  2 1     0 10 20 1000 .9995  500 True  1
CIFAR10    50  80 2  500  1000 1e-5  2 1     0 20 40 2000  .995  500 False 2
CIFAR10   500  40 2 1000    50 1e-5 10 1    40  - 60    -  .995 1000 False 2
CIFAR10  1000 100 2 1000    50 1e-5 10 1    40  - 60    -  .995 1000 True  4
CIFAR100    1  40 3 1000  1000 1e-5 10 1     0 10 20 1000 .9995  500 False 1
CIFAR100   10  80 2 1000  1000 1e-5 10 1     0 30 50 2000 .9995  500 True  4
CIFAR100   50  80 2 1000  1000 1e-5 10 1    20  - 70    - .9995  500 False 4
CIFAR100  100  80 2 1000    50 1e-5 10 1    30  - 70    - .9995  500 True  4
Tiny        1  40 2 1000 10000 1e-4 10 1     0 15 20 2000 .9995  500 True  2
Tiny       10  40 2  500   100 1e-4 10 1    10  - 50    - .9995  500 False 4
Tiny       50  20 2 1000   100 1e-4 10 1    40  - 70    1  .995  500 True  4
"""
# The same of PAD, and both its ratios behind.
_PAD = """\
CIFAR10     1  80 2 1000   100 1e-7  5 1.1   0  -  4    -  .995  500 True  1 0.0
CIFAR10    10  80 2  500   100 1e-5  2 1     0 10 20 1000 .9995  500 True  1 0.5
CIFAR10    50  80 3 1000  1000 1e-5  2 1     0 20 40 2000 .9995  500 False 2 0.25
CIFAR10   500  40 2 1000    50 1e-5 10 1    40 60 70 2000  .995 1000 False 2 0.5
CIFAR10  1000 100 2 1000    50 1e-5 10 1    40  - 60    -  .995 1000 False 3 0.5
CIFAR100    1  40 3 1000  1000 1e-5 10 1     0 20 30 1000 .9995  500 False 1 0.5
CIFAR100   10  80 2 1000  1000 1e-5 10 1     0 30 50 2000 .9995  500 True  4 0.5
CIFAR100   50  80 2 1000  1000 1e-5 10 1    20  - 70    - .9995  500 False 4 0.0
CIFAR100  100  80 2 1000    50 1e-5 10 1    30  - 70    - .9995  500 True  4 0.5
Tiny        1  40 2 1000 10000 1e-4 10 1     0 15 20 2000 .9995  500 True  2 0.5
Tiny       10  40 2  500   100 1e-4 10 1    10  - 50    - .9995  500 False 4 0.5
Tiny       50  20 2 1000   100 1e-4 10 1    40  - 70    1  .995  500 True  4 0.5
"""
_COLUMNS = [
    "dataset",
    "ipc",
    "syn_steps",
    "expert_epochs",
    "batch_syn",
    "lr_img",
    "lr_lr",
    "lr_y",
    "threshold",
    "min_start_epoch",
    "current_max_start_epoch",
    "max_start_epoch",
    "expansion_end_epoch",
    "ema_decay",
    "eval_it",
    "skip_first_eva",
    "device",
    "loss_ratio",
]
_FLOATS = {"lr_img", "lr_lr", "lr_y", "threshold", "ema_decay", "loss_ratio"}


def _value(name: str, text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    if name == "dataset":
        return text
    return float(text) if name in _FLOATS else int(text)


def _rows(table: str) -> list[dict[str, Any]]:
    cells = [line.split() for line in table.splitlines()]
    return [
        {name: _value(name, text) for name, text in zip(_COLUMNS, row, strict=False) if text != "-"}
        for row in cells
    ]


ROWS = {"datm": _rows(_DATM), "pad": _rows(_PAD)}


def names_of(row: dict[str, Any]) -> str:
    """The row as a test is called."""
    return f"{row['dataset']}-{row['ipc']}"


def means(row: dict[str, Any], method: str) -> dict[str, Any]:
    """What a row means, by the keys of DistillConfig; what all rows share included."""
    unread = ("device", "ema_decay")
    pix_init = "real" if names_of(row) == "CIFAR100-50" else "samples_predicted_correctly"
    return {
        **{name: value for name, value in row.items() if name not in unread},
        "method": method,
        "model": "ConvNetD4" if row["dataset"] == "Tiny" else "ConvNet",
        "Sequential_Generation": "current_max_start_epoch" in row,
        "pix_init": pix_init,
        "labels": "soft",
        "Momentum_y": 0.9,
        "lr_teacher": 0.01,
        "Iteration": 10000,
        "num_eval": 1,
        "batch_train": 128,
        "zca": True,
        "keep": "loss" if method == "pad" else "all",
        "gradient": "exact",
        "rho_max": 0.01,
        "alpha": 0.3,
        "ema_decay": None,
    }


def as_published(row: dict[str, Any], method: str) -> str:
    """A row as a file in the published shape: its keys, their order, spellings and quirks."""
    zca_twice = method == "pad" and names_of(row) in ("CIFAR10-10", "CIFAR10-50", "CIFAR100-50")
    lines = [
        f"dataset: {row['dataset']}",
        *(["res: 64", "model: ConvNetD4"] if row["dataset"] == "Tiny" else []),
        f"device: {list(range(row['device']))}\n",
        f"ipc: {row['ipc']}",
        f"syn_steps: {row['syn_steps']}",
        f"expert_epochs: {row['expert_epochs']}",
        *(["zca: False"] if zca_twice else []),
        f"lr_img: {int(row['lr_img'])}",
        "lr_teacher: 0.01",
        "buffer_path: ../buffer_storage/",
        "data_path: ../dataset",
        f"ema_decay: {row['ema_decay']}",
        "Iteration: 10000",
        f"batch_syn: {row['batch_syn']}\n",
        f"# wandb\nproject: {row['dataset']}_ipc{row['ipc']}\n",
        "num_eval: 1",
        f"eval_it: {row['eval_it']}",
        f"skip_first_eva: {row['skip_first_eva']}\n",
        f"lr_y: {row['lr_y']}",
        "Momentum_y: 0.9",
        f"threshold: {row['threshold']:g}.".replace("1.1.", "1.1"),
        f"pix_init: {means(row, method)['pix_init']}",
    ]
    if "current_max_start_epoch" in row:
        lines += [f"current_max_start_epoch: {row['current_max_start_epoch']}"]
    else:
        lines += ["Sequential_Generation: False"]
    if "expansion_end_epoch" in row:
        lines += [f"expansion_end_epoch: {row['expansion_end_epoch']}"]
    lines += [
        "batch_train: 128",
        f"min_start_epoch: {row['min_start_epoch']}",
        f"max_start_epoch: {row['max_start_epoch']}",
        f"lr_lr: {row['lr_lr']:.7f}",
        "zca: True\n",
    ]
    if method == "pad":
        lines += [f"depth_ratio: {row['loss_ratio']}\nloss_ratio: {row['loss_ratio']}"]
    return "\n".join(lines)
