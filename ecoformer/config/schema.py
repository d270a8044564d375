"""The typed schema of every run: each key with its default, its limit and what it is for (`--help` prints them).

YAML is merged into it once, in train.py and eval.py; nothing else reads YAML. What takes one of several names has
them here, so that a name is refused before anything that knows it is loaded.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ecoformer.config.keys import Limit, above, at_least, between, key

ARCHIVES = ("webdataset", "hfds")
SEQUENCES = ("listops", "text_bytes", "pixels")
DATA_NAMES = ["digits", "cifar10", "cifar100", "imagenet", "folder", *ARCHIVES, *SEQUENCES]  # and those of plugins
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
SCHEDULES = ("cosine", "step", "multistep", "plateau", "poly", "tanh", "wsd", "rsqrt", "constant", "none")
PRECISIONS = ("off", "bf16", "fp16")
COMPILE_MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
EVAL_METRICS = ("top1", "top5", "loss")
PARALLEL = ("ddp", "fsdp")
CONVENTIONS = ("paper", "audited")

SHARE = Limit(lambda value: 0 <= value < 1, "at least 0 and below 1")
PROPER_SHARE = Limit(lambda value: 0 < value < 1, "above 0 and below 1")
FRACTION = Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")
RANGE = Limit(lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1], "a list of two numbers, 0 < low <= high")
CHANNELS = Limit(lambda values: len(values) == 3, "a list of three numbers, one per RGB channel")
POSITIVE_CHANNELS = Limit(
    lambda values: len(values) == 3 and min(values) > 0, "a list of three numbers above 0, one per RGB channel"
)
FREEZE = Limit(
    lambda value: value >= 1,
    "at least 1, or null; hash functions that are fitted already are left alone by callbacks.hash_update.enabled=false",
)


@dataclass
class ModelConfig:
    """A timm model. `patch_stride` overrides the stride of the first patch embedding, for small images.

    `kwargs` are further arguments of timm.create_model, given as `+model.kwargs.NAME=VALUE`.
    """

    name: str = key(MISSING, "a timm model")
    drop_path_rate: float = key(0.0, "stochastic depth", limit=SHARE)
    patch_stride: int | None = key(None, "stride of the first patch embedding; null: its own", limit=at_least(1))
    kwargs: dict[str, Any] = key({}, "+model.kwargs.NAME=VALUE: further arguments of timm.create_model")


@dataclass
class CompressConfig:
    """Low-rank compression of the weights a run starts from; at most one of rank, ratio and energy."""

    name: str = key("none", "low-rank weights to start from", choices=("none", "low_rank"))
    rank: int | None = key(None, "give at most one of rank, ratio and energy")
    ratio: float | None = key(None, "share of the full rank")
    energy: float | None = key(None, "share of the squared singular values that is kept")
    layers: list[str] | None = key(None, "patterns of module names; null: all but the classifier")


@dataclass
class DataConfig:
    """A data set; docs/data.md has the layouts. A "split" is a pattern of shards, or the name of a split."""

    name: str = key(MISSING, "docs/data.md has the layouts", choices=DATA_NAMES)
    root: str | None = key(None, "folder of the data")
    img_size: int = key(224, "in pixels", limit=at_least(1))
    seq_len: int | None = key(
        None, "tokens of a sequence: longer ones are cut, shorter ones padded; null: images", limit=at_least(1)
    )
    in_memory: bool | None = key(None, "null: in memory where images are small and fit")
    download: bool = key(False, "CIFAR: fetch it if it is not under root")
    num_workers: int = key(2, "processes that decode; 0: in the main process", limit=at_least(0))
    crop_pct: float | None = key(
        None, "null: what the data set is evaluated at (digits, CIFAR 1.0; else 0.875)", limit=FRACTION
    )
    interpolation: str = key("bicubic", "of resized images", choices=INTERPOLATIONS)
    mean: list[float] | None = key(None, "null: the data set's own, else ImageNet's", limit=CHANNELS)
    std: list[float] | None = key(None, "null: as mean", limit=POSITIVE_CHANNELS)
    max_train_samples: int | None = key(
        None, "use n, for trials; generated listops: their number, null: 96,000", limit=at_least(1)
    )
    max_val_samples: int | None = key(None, "the same of the validation split; null: 2,000", limit=at_least(1))
    dev_samples: int = key(
        0, "cut these off the training split and evaluate on them, not on the test data; 0: no", limit=at_least(0)
    )
    max_corrupt: int = key(
        0, "broken images that are passed over, each reported by path; 0: the first one ends the run", limit=at_least(0)
    )
    train_split: str | None = key(
        None, "webdataset and hfds, as the keys below; null: train, else validation, val, test"
    )
    val_split: str | None = key(
        None, "null: val, validation or test; of sequences val, else cut off the training split; test: the test data"
    )
    image_key: str | None = key(None, 'null: .jpg, .jpeg, .png or .webp of a sample; the column "image"')
    label_key: str | None = key(None, 'null: .cls of a sample ("json:FIELD" reads its .json); the column "label"')
    num_classes: int | None = key(
        None, "where no names are given: the classes are called by their numbers", limit=at_least(1)
    )
    class_names: str | None = key(None, "file under root with a class name a line; null: classes.txt, if there")
    val_share: float = key(
        0.1, "sequences without a validation split: share of the training split that is cut off", limit=PROPER_SHARE
    )
    text_key: str | None = key(None, 'text_bytes: the column of the text; null: "text"')
    pixels_of: str | None = key(None, "pixels: the images, named as in data.name")
    max_depth: int | None = key(
        None, "generated listops: levels of an expression, digits among them; null: 10", limit=at_least(2)
    )
    max_args: int | None = key(None, "generated listops: greatest number of arguments; null: 10", limit=at_least(2))
    min_tokens: int | None = key(
        None, "generated listops: of the shortest; the longest has data.seq_len; null: 4", limit=at_least(4)
    )


@dataclass
class AugmentConfig:
    """Augmentation. Keys marked "file loader" work on single images and are refused for data held in memory."""

    hflip: float = key(0.5, "probability of a horizontal flip", limit=between(0, 1))
    vflip: float = key(0.0, "probability of a vertical flip", limit=between(0, 1))
    crop_padding: int = key(0, "in memory: pad by this many pixels, then crop at random", limit=at_least(0))
    scale: list[float] | None = key(None, "file loader: random resized crop, area range", limit=RANGE)
    ratio: list[float] | None = key(None, "file loader: its aspect ratios", limit=RANGE)
    color_jitter: float = key(0.0, "file loader", limit=at_least(0))
    color_jitter_prob: float | None = key(None, "file loader: share of images with it; null: all", limit=between(0, 1))
    grayscale_prob: float = key(0.0, "file loader: share of images turned grey", limit=between(0, 1))
    gaussian_blur_prob: float = key(0.0, "file loader: share of images blurred", limit=between(0, 1))
    auto_augment: str | None = key(None, "file loader: timm policy string: rand-..., augmix-..., 3a, original, v0")
    random_erase: float = key(0.0, "probability", limit=between(0, 1))
    mixup: float = key(0.0, "alpha; 0: off", limit=at_least(0))
    cutmix: float = key(0.0, "alpha; 0: off", limit=at_least(0))
    mix_prob: float = key(1.0, "share of batches that are mixed", limit=between(0, 1))
    mix_switch_prob: float = key(0.5, "of these, share with cutmix where both are on", limit=between(0, 1))
    mixup_off_epoch: int = key(0, "from this epoch on batches are not mixed; 0: always", limit=at_least(0))
    repeats: int = key(0, "repeated augmentation (file loader); 0 or 1: off", limit=at_least(0))


@dataclass
class OptimConfig:
    name: str = key("adamw", "an optimiser of timm's")
    lr: float = key(5e-4, "learning rate", limit=above(0))
    lr_base_batch: int = key(
        0, "0: lr as it stands; else lr is multiplied by global_batch / lr_base_batch", limit=at_least(0)
    )
    lr_base_scale: str = key("linear", "sqrt: by the square root of that", choices=("linear", "sqrt"))
    weight_decay: float = key(0.05, "not of biases and norms", limit=at_least(0))
    layer_decay: float | None = key(
        None, "learning rate of a layer as a share of the one above it, from the head down; null: 1", limit=FRACTION
    )
    momentum: float = key(0.9, "where the optimiser has one", limit=SHARE)
    betas: list[float] | None = key(
        None, "null: the optimiser's own", limit=Limit(lambda pair: len(pair) == 2, "a list of two numbers")
    )
    eps: float | None = key(None, "null: the optimiser's own", limit=above(0))
    clip_grad: float | None = key(None, "greatest norm of the gradient; null: no clipping", limit=above(0))
    clip_mode: str = key(
        "norm",
        "what clip_grad limits: the norm of all, each value, or each unit's norm beside its weights' (agc)",
        choices=("norm", "value", "agc"),
    )
    kwargs: dict[str, Any] = key({}, "+optim.kwargs.NAME=VALUE: further arguments of timm.optim.create_optimizer_v2")


@dataclass
class ScheduleConfig:
    name: str = key("cosine", "of the learning rate, followed per step (plateau: per epoch)", choices=SCHEDULES)
    warmup_epochs: int = key(
        0, "at least one epoch follows the warm-up: a shorter run warms up for train.epochs - 1", limit=at_least(0)
    )
    warmup_lr: float = key(1e-6, "where the warm-up starts", limit=at_least(0))
    min_lr: float = key(1e-6, "where the schedule ends", limit=at_least(0))
    cooldown_epochs: int = key(0, "of train.epochs, the last ones at min_lr", limit=at_least(0))
    decay_epochs: float | None = key(
        None, "step: between decays (null: 90); wsd, rsqrt: of the decay, below 1 a share (null: 0.2)", limit=above(0)
    )
    decay_milestones: list[int] | None = key(
        None,
        "multistep: epochs at whose start it decays (null: 90, 180, 270)",
        limit=Limit(lambda epochs: epochs and min(epochs) > 0 and sorted(epochs) == epochs, "rising epochs above 0"),
    )
    decay_rate: float | None = key(
        None, "step, multistep, plateau: factor of a decay; poly: its power, 1 is linear; null: 0.1", limit=above(0)
    )
    patience_epochs: int | None = key(
        None, "plateau: epochs without a better train.eval_metric before a decay; null: 10", limit=at_least(0)
    )
    kwargs: dict[str, Any] = key(
        {}, "+schedule.kwargs.NAME=VALUE: further arguments of timm.scheduler.create_scheduler_v2"
    )


@dataclass
class TrainConfig:
    epochs: int = key(100, "0: convert, fit hash functions and evaluate, without training", limit=at_least(0))
    batch_size: int = key(128, "per process", limit=at_least(1))
    eval_batch_size: int | None = key(None, "null: the same", limit=at_least(1))
    grad_accum: int = key(1, "batches an optimiser step", limit=at_least(1))
    amp: str = key(
        "off", "autocast; auto: off on a CPU, else bf16, or fp16 on GPUs without it", choices=("auto", *PRECISIONS)
    )
    grad_checkpointing: bool = key(False, "compute blocks again in the backward pass instead of keeping what they made")
    parallel: str = key(
        "ddp", "of several processes: each holds all weights (ddp), or a share of them (fsdp: FSDP2)", choices=PARALLEL
    )
    smoothing: float = key(0.0, "of labels", limit=SHARE)
    bce_loss: bool = key(False, "binary cross entropy of each class, instead of one cross entropy of all")
    bce_sum: bool = key(False, "sum it over the classes, instead of their mean")
    bce_target_thresh: float | None = key(
        None, "targets above become 1, all others 0; null: as mixed and smoothed", limit=between(0, 1)
    )
    bce_pos_weight: float | None = key(None, "of the right class in it; null: 1", limit=above(0))
    aug_splits: int = key(
        0,
        "file loader: each image n times in a batch, the first without augment.auto_augment; 0: once",
        limit=Limit(lambda value: value == 0 or value > 1, "0, or at least 2"),
    )
    jsd_loss: bool = key(False, "AugMix: also the Jensen-Shannon divergence between the splits' outputs")
    ema_decay: float = key(0.0, "0: off", limit=SHARE)
    ema_warmup: bool = key(False, "let the decay of the average rise to ema_decay with the steps, as timm does")
    sync_bn: bool = key(False, "batch norm over the images of all processes; GPUs alone")
    channels_last: bool = key(False, "memory format of the model")
    compile: bool = key(False, "torch.compile")
    compile_mode: str | None = key(None, "how; null: torch's default", choices=COMPILE_MODES)
    eval_metric: str = key("top1", "which figure of the evaluation chooses best.pt", choices=EVAL_METRICS)
    val_interval: int = key(1, "evaluate after every n-th epoch, and after the last", limit=at_least(1))
    early_stop: int | None = key(
        None, "end the run where this many epochs brought no better eval_metric; null: never", limit=at_least(1)
    )
    log_every: int = key(50, "steps between lines in metrics.jsonl", limit=at_least(1))
    max_steps: int | None = key(None, "per epoch; for smoke runs", limit=at_least(1))
    freeze: list[str] = key([], "name patterns of parameters that are not trained")
    max_skipped_batches: int = key(
        0, "steps with a non-finite loss or gradient that a run leaves out before it stops", limit=at_least(0)
    )
    progress: bool = key(True, "show a progress display")


@dataclass
class DistillConfig:
    """Learning from another model's logits, beside the labels: a run's best.pt, with the same classes, or timm's."""

    checkpoint: str | None = key(None, "null: labels alone, or a model of timm's")
    model: str | None = key(None, "a timm model with timm's weights, of ImageNet's classes or the data's")
    weight: float = key(0.5, "of the teacher's term; that of the labels is 1 - weight", limit=FRACTION)
    temperature: float = key(1.0, "of both sides of the term", limit=above(0))


@dataclass
class CheckpointConfig:
    """What is written beside last.pt and best.pt at the end of each epoch."""

    every_steps: int = key(0, "last.pt also every n optimiser steps, within an epoch; 0: never", limit=at_least(0))
    keep_top_k: int = key(0, "weights of the k best epochs, as top/epoch-N.pt", limit=at_least(0))


@dataclass
class InitConfig:
    pretrained: bool = key(False, "timm's weights; a checkpoint goes before them")
    checkpoint: str | None = key(None, "a run's best.pt or last.pt; attention weights are converted as needed")
    use_ema: bool = key(True, "of a file of others that holds averaged weights too: take those, as timm does")
    reset_head: bool = key(False, "a checkpoint with another number of classes: start with a new classifier head")


@dataclass
class HashUpdateConfig:
    """When and on what the hash functions are fitted.

    Epochs and optimiser steps count from 0, steps over the whole run; a fit comes before the step.
    """

    enabled: bool = key(True, "false: leave hash functions as they are")
    at_epochs: list[int] = key(
        [0],
        "fit before these epochs",
        limit=Limit(lambda epochs: all(epoch >= 0 for epoch in epochs), "epochs counted from 0"),
    )
    every: int = key(0, "also every n epochs; 0: never", limit=at_least(0))
    every_steps: int = key(0, "also every n steps; 0: never", limit=at_least(0))
    warmup_steps: int = key(
        0, "also every `warmup_every` steps as long as fewer than this many are done", limit=at_least(0)
    )
    warmup_every: int = key(0, limit=at_least(0))
    freeze_epoch: int | None = key(None, "no fit from this epoch on", limit=FREEZE)
    freeze_step: int | None = key(None, "no fit from this step on", limit=FREEZE)
    num_images: int = key(32, "training images to fit on", limit=at_least(1))
    held_out_images: int = key(
        16, "further ones to measure each fit on, fewer where the training set ends; 0: none", limit=at_least(0)
    )


@dataclass
class FeatureRedrawConfig:
    """When random features (Performer) are drawn anew: before the steps of epochs n, 2n, ..., counted from 0."""

    enabled: bool = key(True, "false: keep the first draw")
    every: int = key(1, "epochs", limit=at_least(1))


@dataclass
class EnergyLogConfig:
    enabled: bool = key(True, "count the model once, at the start")


@dataclass
class CallbacksConfig:
    hash_update: HashUpdateConfig = field(default_factory=HashUpdateConfig)
    feature_redraw: FeatureRedrawConfig = field(default_factory=FeatureRedrawConfig)
    energy_log: EnergyLogConfig = field(default_factory=EnergyLogConfig)
    extra: list[Any] = key([], "callbacks of others: [{_target_: MODULE.CLASS, ARGUMENT: VALUE}]")


@dataclass
class WandbConfig:
    enabled: bool = key(False, "log to Weights & Biases, offline without a key")
    project: str = key("ecoformer", "in wandb")
    entity: str | None = key(None, "user or team; null: wandb's default")
    group: str | None = key(None, "null: the runs of a sweep share one, named as its folder")
    job_type: str | None = key(None, "of the run")
    name: str | None = key(None, "null: the run's name, in a group with that of its folder")
    tags: list[str] = key([], "of the run")
    notes: str | None = key(None, "of the run")
    artifacts: bool = key(False, "upload best.pt when the run ends")


@dataclass
class TensorBoardConfig:
    enabled: bool = key(False, "write event files for TensorBoard into the run directory")


@dataclass
class LoggerConfig:
    wandb: WandbConfig = field(default_factory=WandbConfig)
    tensorboard: TensorBoardConfig = field(default_factory=TensorBoardConfig)
    extra: list[Any] = key([], "loggers of others, given as callbacks.extra")


@dataclass
class EnergyConfig:
    convention: str = key("paper", "what is counted, docs/energy.md", choices=CONVENTIONS)
    profile: str = key("45nm_fp32", "prices: a name or a YAML file")


@dataclass
class LaunchConfig:
    """train.py starts torchrun itself, in each job of a sweep and of hydra/launcher=slurm or local; else leave it.

    One node's torchrun starts `nproc_per_node` processes; None: one for each GPU that the launcher asks for, and
    without a launcher no torchrun. If a process fails, all start again, up to `max_restarts` times.
    """

    nproc_per_node: int | None = key(
        None, "processes that torchrun starts on a node; null: the GPUs of the job", limit=at_least(1)
    )
    max_restarts: int = key(3, "of all processes, after one failed", limit=at_least(0))


@dataclass
class Config:
    """What train.py runs. `attention` holds a kind (`name`), its options, and `layers` (see configs/attention)."""

    name: str = key("run", "names the default output_dir and the wandb run; experiment files set their own")
    model: ModelConfig = field(default_factory=ModelConfig)
    attention: dict[str, Any] = key({"name": "stock"}, "a kind (name), its options, and layers")
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
    plugins: list[str] = key([], "modules that add kinds, data sources and the like (CONTRIBUTING.md)")
    seed: int = key(0, "of all that is drawn", limit=between(0, 2**32 - 1))
    device: str = key("auto", "auto, cpu, cuda, cuda:N")
    threads: int | None = key(None, "CPU threads; null: torch's choice", limit=at_least(1))
    deterministic: bool | None = key(True, "refuse operations that are not; null: on a CPU alone")
    output_dir: str | None = key(None, "null: outputs/<name>/<date and time>")
    overwrite: bool = key(False, "set the run that output_dir already holds aside, in earlier-N, and start anew")
    resume: str = key("off", "off, auto (from output_dir/last.pt if it exists), or a checkpoint file")
    dry_run: bool = key(False, "print the launch plan and what the run will cost, train nothing")
    dry_run_probe: bool = key(True, "measure: fit the hashes, take two steps; false: only what needs no computing")
    dry_run_out: str | None = key(None, "also write the plan to this JSON file, with the images of every class")


@dataclass
class EvalModelConfig:
    """A model to evaluate without a run."""

    name: str | None = key(None, "a timm model, instead of a checkpoint; `model=NAME` is the same")


@dataclass
class EvalDataConfig:
    """What evaluation may change about the checkpoint's data, or timm's; None: as in training, or as timm evaluates."""

    name: str | None = key(None, "another layout of the same classes: folder, webdataset, hfds", choices=DATA_NAMES)
    root: str | None = key(None, "null, here and below: as in training")
    img_size: int | None = key(None, limit=at_least(1))
    crop_pct: float | None = key(None, limit=FRACTION)
    interpolation: str | None = key(None, choices=INTERPOLATIONS)
    num_workers: int | None = key(None, limit=at_least(0))
    max_val_samples: int | None = key(None, limit=at_least(1))
    max_corrupt: int | None = key(None, limit=at_least(0))
    val_split: str | None = key(None)


@dataclass
class EvalEnergyConfig:
    """What evaluation may change about the energy accounting; None: as in training."""

    convention: str | None = key(None, choices=CONVENTIONS)
    profile: str | None = key(None)


@dataclass
class EvalConfig:
    """What eval.py runs; everything else comes from the checkpoint's own config."""

    checkpoint: str | None = key(None, "a run's best.pt or last.pt")
    model: EvalModelConfig = field(default_factory=EvalModelConfig)
    pretrained: bool = key(False, "with model=NAME: timm's weights")
    attention: dict[str, Any] = key({}, "attention=KIND refuses a checkpoint of another kind")
    batch_size: int | None = key(None, "null: as in training", limit=at_least(1))
    amp: str | None = key(None, "null: as in training", choices=PRECISIONS)
    data: EvalDataConfig = field(default_factory=EvalDataConfig)
    energy: EvalEnergyConfig = field(default_factory=EvalEnergyConfig)
    plugins: list[str] = key([], "modules that add kinds, data sources and the like (CONTRIBUTING.md)")
    device: str = key("auto", "auto, cpu, cuda, cuda:N")
    threads: int | None = key(None, "CPU threads; null: torch's choice", limit=at_least(1))
    progress: bool = key(True, "show a progress display")
    out: str | None = key(None, "also write the figures to this JSON file")
    details: str | None = key(None, "folder for predictions.csv, per_class.csv and confusion.csv")


SCHEMAS: dict[str, type] = {"train": Config, "eval": EvalConfig}


def register_schemas() -> None:
    """Make the schemas known to Hydra as `train_schema` and `eval_schema`, the first entry of each defaults list."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
