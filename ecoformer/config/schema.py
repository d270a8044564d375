"""The typed schema of every run: each key with its default, its limit and what it is for (`--help` prints them).

YAML is merged into it once, in train.py and eval.py; nothing else reads YAML. What takes one of several names has
them here, so that a name is refused before anything that knows it is loaded. The groups of data and training stand in
data.py and training.py; all names can be imported from here.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ecoformer.config.data import (  # noqa: F401
    ARCHIVES,
    BUNDLED,
    DATA_NAMES,
    IMAGENET_TESTS,
    SEQUENCES,
    AugmentConfig,
    DataConfig,
    EvalDataConfig,
)
from ecoformer.config.keys import FRACTION, SHARE, Limit, above, at_least, between, key
from ecoformer.config.training import (  # noqa: F401
    PRECISIONS,
    SCHEDULES,
    CheckpointConfig,
    HashUpdateConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

CONVENTIONS = ("paper", "audited")
CHANNELS_READ = Limit(lambda value: value in (1, 3), "1 or 3: images are read in grey or in RGB")


@dataclass
class ModelConfig:
    """A timm model. `patch_stride` overrides the stride of the first patch embedding, for small images.

    `kwargs` are further arguments of timm.create_model, given as `+model.kwargs.NAME=VALUE`.
    """

    name: str = key(MISSING, "a timm model")
    in_chans: int = key(3, "channels of images: 1 reads them in grey, 3 in RGB", limit=CHANNELS_READ)
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
class DistillConfig:
    """Learning from another model's logits, beside the labels: a run's best.pt, with the same classes, or timm's."""

    checkpoint: str | None = key(None, "null: labels alone, or a model of timm's")
    model: str | None = key(None, "a timm model with timm's weights, of ImageNet's classes or the data's")
    weight: float = key(0.5, "of the teacher's term; that of the labels is 1 - weight", limit=FRACTION)
    temperature: float = key(1.0, "of both sides of the term", limit=above(0))


@dataclass
class InitConfig:
    pretrained: bool = key(False, "timm's weights; a checkpoint goes before them")
    checkpoint: str | None = key(None, "a run's best.pt or last.pt; attention weights are converted as needed")
    use_ema: bool = key(True, "of a file of others that holds averaged weights too: take those, as timm does")
    reset_head: bool = key(False, "a checkpoint with another number of classes: start with a new classifier head")

    @property
    def origin(self) -> str:
        """What a run starts from, in a word or as a path."""
        return self.checkpoint or ("pretrained" if self.pretrained else "new")


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

    nproc_per_node: int | None = key(None, "processes of torchrun on a node; null: the job's GPUs", limit=at_least(1))
    max_restarts: int = key(3, "of all processes, after one failed", limit=at_least(0))


@dataclass
class Config:
    """What train.py runs. `attention` holds a kind (`name`), its options, `layers`, `rest` (see configs/attention)."""

    name: str = key("run", "names the default output_dir and the wandb run; experiment files set their own")
    model: ModelConfig = field(default_factory=ModelConfig)
    attention: dict[str, Any] = key({"name": "stock"}, "a kind (name), its options, layers and rest")
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
    threads: int | None = key(None, "CPU threads; null: torch's choice", limit=between(1, 1024))
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
    in_chans: int | None = key(None, "as in training; null: those of the weights", limit=CHANNELS_READ)


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
    threads: int | None = key(None, "CPU threads; null: torch's choice", limit=between(1, 1024))
    progress: bool = key(True, "show a progress display")
    out: str | None = key(None, "also write the figures to this JSON file")
    details: str | None = key(None, "folder for predictions.csv, per_class.csv and confusion.csv")


SCHEMAS: dict[str, type] = {"train": Config, "eval": EvalConfig}


@functools.cache  # the store is the process's, and a schema takes a while to become a config
def register_schemas() -> None:
    """Make the schemas known to Hydra as `train_schema` and `eval_schema`, the first entry of each defaults list."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)
