"""The typed schema of every run. YAML is merged into it once, in train.py and eval.py; nothing else reads YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    """A timm model. `patch_stride` overrides the stride of the first patch embedding, for small images.

    `kwargs` are further arguments of timm.create_model, given as `+model.kwargs.NAME=VALUE`.
    """

    name: str = MISSING
    drop_path_rate: float = 0.0
    patch_stride: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class CompressConfig:
    """Low-rank compression of the weights a run starts from; at most one of rank, ratio and energy."""

    name: str = "none"  # none, low_rank
    rank: int | None = None
    ratio: float | None = None
    energy: float | None = None
    layers: list[str] | None = None  # patterns of module names; None: all but the classifier


@dataclass
class DataConfig:
    """A data set; docs/data.md has the layouts. A "split" is a pattern of shards, or the name of a split."""

    name: str = MISSING  # digits, cifar10, cifar100, imagenet, folder, webdataset, hfds
    root: str | None = None
    img_size: int = 224
    in_memory: bool | None = None  # None: in memory where images are small and fit
    download: bool = False
    num_workers: int = 2
    crop_pct: float | None = None  # None: what the data set is evaluated at (digits, CIFAR 1.0; else 0.875)
    interpolation: str = "bicubic"
    mean: list[float] | None = None  # None: the data set's own, else ImageNet's
    std: list[float] | None = None
    max_train_samples: int | None = None
    max_val_samples: int | None = None
    dev_samples: int = 0  # cut these off the training split and evaluate on them, not on the test data; 0: no
    max_corrupt: int = 0  # broken images that are passed over, each reported by path; 0: the first one ends the run
    train_split: str | None = None  # webdataset and hfds, as the keys below; None: train, else validation, val, test
    val_split: str | None = None
    image_key: str | None = None  # None: .jpg, .jpeg, .png or .webp of a sample; the column "image"
    label_key: str | None = None  # None: .cls of a sample ("json:FIELD" reads its .json); the column "label"
    num_classes: int | None = None  # where no names are given: the classes are called by their numbers
    class_names: str | None = None  # file under root with a class name a line; None: classes.txt, if there


@dataclass
class AugmentConfig:
    """Augmentation. Keys marked "file loader" work on single images and are refused for data held in memory."""

    hflip: float = 0.5
    crop_padding: int = 0  # in memory: pad by this many pixels, then crop at random
    scale: list[float] | None = None  # file loader: random resized crop, area range
    ratio: list[float] | None = None
    color_jitter: float = 0.0  # file loader
    auto_augment: str | None = None  # file loader: timm policy string
    random_erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    repeats: int = 0  # repeated augmentation (file loader); 0 or 1: off


@dataclass
class OptimConfig:
    name: str = "adamw"
    lr: float = 5e-4
    lr_base_batch: int = 0  # 0: lr as it stands; else lr is multiplied by global_batch / lr_base_batch
    weight_decay: float = 0.05
    momentum: float = 0.9
    betas: list[float] | None = None
    clip_grad: float | None = None


@dataclass
class ScheduleConfig:
    name: str = "cosine"
    warmup_epochs: int = 0  # at least one epoch follows the warm-up: a shorter run warms up for train.epochs - 1
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6


@dataclass
class TrainConfig:
    epochs: int = 100  # 0: convert, fit hash functions and evaluate, without training
    batch_size: int = 128  # per process
    eval_batch_size: int | None = None  # None: the same
    grad_accum: int = 1
    amp: str = "off"  # off, bf16, fp16
    parallel: str = "ddp"  # of several processes: each holds all weights (ddp), or a share of them (fsdp: FSDP2)
    smoothing: float = 0.0
    ema_decay: float = 0.0  # 0: off
    channels_last: bool = False
    compile: bool = False
    log_every: int = 50  # steps between lines in metrics.jsonl
    max_steps: int | None = None  # per epoch; for smoke runs
    freeze: list[str] = field(default_factory=list)  # name patterns of parameters that are not trained
    max_skipped_batches: int = 0  # steps with a non-finite loss or gradient that a run leaves out before it stops
    progress: bool = True


@dataclass
class DistillConfig:
    """Learning from the logits of another run's model, beside the labels: its best.pt, with the same classes."""

    checkpoint: str | None = None  # None: labels alone
    weight: float = 0.5  # of the teacher's term; that of the labels is 1 - weight
    temperature: float = 1.0


@dataclass
class CheckpointConfig:
    """What is written beside last.pt and best.pt at the end of each epoch."""

    every_steps: int = 0  # last.pt also every n optimiser steps, within an epoch; 0: never
    keep_top_k: int = 0  # weights of the k best epochs, as top/epoch-N.pt


@dataclass
class InitConfig:
    pretrained: bool = False  # timm's weights; a checkpoint goes before them
    checkpoint: str | None = None  # a run's best.pt or last.pt; attention weights are converted as needed
    reset_head: bool = False  # a checkpoint with another number of classes: start with a new classifier head


@dataclass
class HashUpdateConfig:
    """When and on what the hash functions are fitted.

    Epochs and optimiser steps count from 0, steps over the whole run; a fit comes before the step.
    """

    enabled: bool = True
    at_epochs: list[int] = field(default_factory=lambda: [0])
    every: int = 0  # also every n epochs; 0: never
    every_steps: int = 0  # also every n steps; 0: never
    warmup_steps: int = 0  # also every `warmup_every` steps as long as fewer than this many are done
    warmup_every: int = 0
    freeze_epoch: int | None = None  # no fit from this epoch on
    freeze_step: int | None = None  # no fit from this step on
    num_images: int = 32  # training images to fit on
    held_out_images: int = 16  # further ones to measure each fit on, fewer where the training set ends; 0: none


@dataclass
class FeatureRedrawConfig:
    """When random features (Performer) are drawn anew: before the steps of epochs n, 2n, ..., counted from 0."""

    enabled: bool = True
    every: int = 1


@dataclass
class EnergyLogConfig:
    enabled: bool = True


@dataclass
class CallbacksConfig:
    hash_update: HashUpdateConfig = field(default_factory=HashUpdateConfig)
    feature_redraw: FeatureRedrawConfig = field(default_factory=FeatureRedrawConfig)
    energy_log: EnergyLogConfig = field(default_factory=EnergyLogConfig)


@dataclass
class WandbConfig:
    enabled: bool = False
    project: str = "ecoformer"
    name: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class LoggerConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class EnergyConfig:
    convention: str = "paper"
    profile: str = "45nm_fp32"


@dataclass
class LaunchConfig:
    """train.py starts torchrun itself, in each job of a sweep and of hydra/launcher=slurm or local; else leave it.

    One node's torchrun starts `nproc_per_node` processes; None: one for each GPU that the launcher asks for, and
    without a launcher no torchrun. If a process fails, all start again, up to `max_restarts` times.
    """

    nproc_per_node: int | None = None
    max_restarts: int = 3


@dataclass
class Config:
    """What train.py runs. `attention` holds a kind (`name`), its options, and `layers` (see configs/attention)."""

    name: str = "run"  # names the default output_dir and the wandb run; experiment files set their own
    model: ModelConfig = field(default_factory=ModelConfig)
    attention: dict[str, Any] = field(default_factory=lambda: {"name": "stock"})
    compress: CompressConfig = field(default_factory=CompressConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    init: InitConfig = field(default_factory=InitConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    threads: int | None = None  # CPU threads; None: torch's choice
    deterministic: bool = True
    output_dir: str | None = None  # None: outputs/<name>/<date and time>
    overwrite: bool = False  # set the run that output_dir already holds aside, in earlier-N, and start anew
    resume: str = "off"  # off, auto (from output_dir/last.pt if it exists), or a checkpoint file
    dry_run: bool = False  # print the launch plan and what the run will cost, train nothing
    dry_run_probe: bool = True  # measure: fit the hashes, take two steps; false: only what needs no computing
    dry_run_out: str | None = None  # also write the plan to this JSON file, with the images of every class


@dataclass
class EvalDataConfig:
    """What evaluation may change about the checkpoint's data; None: as in training."""

    name: str | None = None  # another layout of the same classes: folder, webdataset, hfds
    root: str | None = None
    img_size: int | None = None
    num_workers: int | None = None
    max_val_samples: int | None = None
    max_corrupt: int | None = None
    val_split: str | None = None


@dataclass
class EvalEnergyConfig:
    """What evaluation may change about the energy accounting; None: as in training."""

    convention: str | None = None
    profile: str | None = None


@dataclass
class EvalConfig:
    """What eval.py runs; everything else comes from the checkpoint's own config."""

    checkpoint: str = MISSING
    attention: dict[str, Any] = field(default_factory=dict)  # attention=KIND refuses a checkpoint of another kind
    batch_size: int | None = None
    amp: str | None = None
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    energy: EvalEnergyConfig = field(default_factory=EvalEnergyConfig)
    device: str = "auto"
    threads: int | None = None
    progress: bool = True
    out: str | None = None  # also write the figures to this JSON file


SCHEMAS: dict[str, type] = {"train": Config, "eval": EvalConfig}


def register_schemas() -> None:
    """Make the schemas known to Hydra as `train_schema` and `eval_schema`, the first entry of each defaults list."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
