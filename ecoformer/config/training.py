"""Keys of the training: optimiser, schedule, loop, checkpoints, hash fits; see schema.py."""

from dataclasses import dataclass
from typing import Any

from ecoformer.config.keys import FRACTION, SHARE, Limit, above, at_least, between, key

SCHEDULES = ("cosine", "step", "multistep", "plateau", "poly", "tanh", "wsd", "rsqrt", "constant", "none")
PRECISIONS = ("off", "bf16", "fp16")
COMPILE_MODES = ("reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
CLIP_MODES = ("norm", "value", "agc")
EVAL_METRICS = ("top1", "top5", "loss")
PARALLEL = ("ddp", "fsdp")
PAIR = Limit(lambda pair: len(pair) == 2, "a list of two numbers")
RISING = Limit(lambda epochs: epochs and min(epochs) > 0 and sorted(epochs) == epochs, "rising epochs above 0")
SPLITS = Limit(lambda value: value == 0 or value > 1, "0, or at least 2")
EPOCHS = Limit(lambda epochs: all(epoch >= 0 for epoch in epochs), "epochs counted from 0")
FREEZE = Limit(
    lambda value: value >= 1,
    "at least 1, or null; hash functions that are fitted already are left alone by callbacks.hash_update.enabled=false",
)


@dataclass
class OptimConfig:
    name: str = key("adamw", "an optimiser of timm's")
    lr: float = key(5e-4, "learning rate", limit=above(0))
    lr_base_batch: int = key(0, "0: lr as it stands; else lr times global_batch / lr_base_batch", limit=at_least(0))
    lr_base_scale: str = key("linear", "sqrt: by the square root of that", choices=("linear", "sqrt"))
    weight_decay: float = key(0.05, "not of biases and norms", limit=at_least(0))
    layer_decay: float | None = key(None, "lr of a layer as a share of the one above it; null: 1", limit=FRACTION)
    momentum: float = key(0.9, "where the optimiser has one", limit=SHARE)
    betas: list[float] | None = key(None, "null: the optimiser's own", limit=PAIR)
    eps: float | None = key(None, "null: the optimiser's own", limit=above(0))
    clip_grad: float | None = key(None, "greatest norm of the gradient; null: no clipping", limit=above(0))
    clip_mode: str = key("norm", "norm of all, each value, or norms of units beside their weights'", choices=CLIP_MODES)
    kwargs: dict[str, Any] = key({}, "+optim.kwargs.NAME=VALUE: further arguments of timm's create_optimizer_v2")


@dataclass
class ScheduleConfig:
    name: str = key("cosine", "of the learning rate, followed per step (plateau: per epoch)", choices=SCHEDULES)
    warmup_epochs: int = key(0, "of a shorter run train.epochs - 1, so that one follows", limit=at_least(0))
    warmup_lr: float = key(1e-6, "where the warm-up starts", limit=at_least(0))
    min_lr: float = key(1e-6, "where the schedule ends", limit=at_least(0))
    cooldown_epochs: int = key(0, "of train.epochs, the last ones at min_lr", limit=at_least(0))
    decay_epochs: float | None = key(
        None, "step: between decays (null: 90); wsd, rsqrt: of the decay, below 1 a share (null: 0.2)", limit=above(0)
    )
    decay_milestones: list[int] | None = key(None, "multistep: where it decays (null: 90, 180, 270)", limit=RISING)
    decay_rate: float | None = key(
        None, "step, multistep, plateau: factor of a decay; poly: its power, 1 is linear; null: 0.1", limit=above(0)
    )
    patience_epochs: int | None = key(None, "plateau: epochs without a better eval_metric; null: 10", limit=at_least(0))
    kwargs: dict[str, Any] = key({}, "+schedule.kwargs.NAME=VALUE: further arguments of timm's create_scheduler_v2")


@dataclass
class TrainConfig:
    epochs: int = key(100, "0: convert, fit hash functions and evaluate, without training", limit=at_least(0))
    batch_size: int = key(128, "per process", limit=at_least(1))
    eval_batch_size: int | None = key(None, "null: the same", limit=at_least(1))
    grad_accum: int = key(1, "batches an optimiser step", limit=at_least(1))
    amp: str = key("off", "autocast; auto: off on a CPU, else bf16, or fp16 if need be", choices=("auto", *PRECISIONS))
    grad_checkpointing: bool = key(False, "compute blocks again in the backward pass instead of keeping what they made")
    parallel: str = key("ddp", "each process holds all weights (ddp), or a share (fsdp: FSDP2)", choices=PARALLEL)
    smoothing: float = key(0.0, "of labels", limit=SHARE)
    bce_loss: bool = key(False, "binary cross entropy of each class, instead of one cross entropy of all")
    bce_sum: bool = key(False, "sum it over the classes, instead of their mean")
    bce_target_thresh: float | None = key(None, "targets above are 1, others 0; null: as they are", limit=between(0, 1))
    bce_pos_weight: float | None = key(None, "of the right class in it; null: 1", limit=above(0))
    aug_splits: int = key(0, "file loader: each image n times, the first without auto_augment; 0: once", limit=SPLITS)
    jsd_loss: bool = key(False, "AugMix: also the Jensen-Shannon divergence between the splits' outputs")
    ema_decay: float = key(0.0, "0: off", limit=SHARE)
    ema_warmup: bool = key(False, "let the decay of the average rise to ema_decay with the steps, as timm does")
    sync_bn: bool = key(False, "batch norm over the images of all processes; GPUs alone")
    channels_last: bool = key(False, "memory format of the model")
    compile: bool = key(False, "torch.compile")
    compile_mode: str | None = key(None, "how; null: torch's default", choices=COMPILE_MODES)
    eval_metric: str = key("top1", "which figure of the evaluation chooses best.pt", choices=EVAL_METRICS)
    val_interval: int = key(1, "evaluate after every n-th epoch, and after the last", limit=at_least(1))
    val_interval_steps: int = key(
        0, "also after every n-th optimiser step of the run, for best.pt too; 0: never", limit=at_least(0)
    )
    early_stop: int | None = key(None, "end after n epochs of no better eval_metric; null: never", limit=at_least(1))
    log_every: int = key(50, "steps between lines in metrics.jsonl", limit=at_least(1))
    max_steps: int | None = key(None, "per epoch; for smoke runs", limit=at_least(1))
    freeze: list[str] = key([], "name patterns of parameters that are not trained")
    max_skipped_batches: int = key(0, "non-finite steps that a run leaves out before it stops", limit=at_least(0))
    progress: bool = key(True, "show a progress display")


@dataclass
class CheckpointConfig:
    """What is written beside last.pt and best.pt at the end of each epoch."""

    every_steps: int = key(0, "last.pt also every n optimiser steps, within an epoch; 0: never", limit=at_least(0))
    keep_top_k: int = key(0, "weights of the k best epochs, as top/epoch-N.pt", limit=at_least(0))


@dataclass
class HashUpdateConfig:
    """When and on what the hash functions are fitted.

    Epochs and optimiser steps count from 0, steps over the whole run; a fit comes before the step.
    """

    enabled: bool = key(True, "false: leave hash functions as they are")
    at_epochs: list[int] = key([0], "fit before these epochs", limit=EPOCHS)
    every: int = key(0, "also every n epochs; 0: never", limit=at_least(0))
    every_steps: int = key(0, "also every n steps; 0: never", limit=at_least(0))
    warmup_steps: int = key(0, "also every `warmup_every` steps while fewer than this many are done", limit=at_least(0))
    warmup_every: int = key(0, "steps between these", limit=at_least(0))
    freeze_epoch: int | None = key(None, "no fit from this epoch on", limit=FREEZE)
    freeze_step: int | None = key(None, "no fit from this step on", limit=FREEZE)
    num_images: int = key(32, "training images to fit on", limit=at_least(1))
    held_out_images: int = key(16, "further ones to measure each fit on, where there are; 0: none", limit=at_least(0))
