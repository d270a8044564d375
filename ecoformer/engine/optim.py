"""Optimiser, learning rate schedule, loss and precision, from the configs, through timm."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import model_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.plateau_lr import PlateauLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn

from ecoformer.config.schema import OptimConfig, ScheduleConfig, TrainConfig
from ecoformer.errors import InputError, one_line

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def scaled_lr(config: OptimConfig, global_batch: int) -> float:
    """The learning rate for `global_batch` images per optimiser step: linear scaling, as published, or its root."""
    if config.lr_base_batch <= 0:
        return config.lr
    if config.lr_base_scale == "sqrt":
        return config.lr * math.sqrt(global_batch / config.lr_base_batch)
    return config.lr * global_batch / config.lr_base_batch


def build_optimizer(model: nn.Module, config: OptimConfig, global_batch: int) -> torch.optim.Optimizer:
    """timm's optimiser of that name; biases, norms and what the model exempts get no weight decay.

    Raises InputError: an optimiser that timm does not know, that refuses an option, or whose steps need more than the
    gradients; layer decay for a model without `group_matcher`.
    """
    named = {"betas": config.betas and tuple(config.betas), "eps": config.eps, "layer_decay": config.layer_decay}
    options = {**config.kwargs, **{key: value for key, value in named.items() if value is not None}}

    if config.layer_decay is not None and not hasattr(model, "group_matcher"):  # timm would count parameters instead
        raise InputError(f"optim.layer_decay: {type(model).__name__} does not say what its layers are: leave it out")

    def build(parameters: Any) -> torch.optim.Optimizer:
        return create_optimizer_v2(
            parameters,
            opt=config.name,
            lr=scaled_lr(config, global_batch),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **options,
        )

    try:
        optimizer = build(model)
    except Exception as error:  # timm asserts that a library or a GPU is there; under python -O that fails otherwise
        raise InputError(f"optim.name={config.name} cannot be built: {one_line(error)}") from error
    _try_out(config.name, build)
    for key in ("betas", "eps"):  # timm drops them where the optimiser takes none
        if (value := getattr(config, key)) is not None and key not in optimizer.defaults:
            raise InputError(f"optim.{key}={value} is not an option of optim.name={config.name}: set it to null")
    return optimizer


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """The rate now: that of all parameters, or with `optim.layer_decay` of the topmost, which has the largest."""
    return max(group["lr"] for group in optimizer.param_groups)


def clip_gradients(model: nn.Module, config: OptimConfig) -> Tensor:
    """Clip the gradients as the config says, and return the norm of all of them before it."""
    parameters = list(model.parameters())
    if config.clip_grad is not None and config.clip_mode == "norm":
        return nn.utils.clip_grad_norm_(parameters, config.clip_grad)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if config.clip_grad is not None:
        clipped = model_parameters(model, exclude_head=config.clip_mode == "agc")  # as timm and Brock et al. do
        dispatch_clip_grad(clipped, config.clip_grad, mode=config.clip_mode)
    return norm


def _try_out(name: str, build: Callable[[Any], torch.optim.Optimizer]) -> None:
    """A step on parameters of the usual shapes: what only fails there would do so after the run has begun."""
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((4,), (4, 4), (4, 2, 3, 3))]
    try:
        with torch.random.fork_rng(devices=[]):
            optimizer = build(parameters)
            sum(parameter.square().sum() for parameter in parameters).backward()  # type: ignore[union-attr]
            optimizer.step()
    except Exception as error:
        raise InputError(
            f"optim.name={name} cannot take a step with gradients alone: {one_line(error)}; choose another, as adamw"
        ) from error


def build_schedule(
    optimizer: torch.optim.Optimizer, config: ScheduleConfig, train: TrainConfig, steps_per_epoch: int
) -> Scheduler | None:
    """timm's schedule of that name, a pure function of the optimiser step; but plateau follows `train.eval_metric`.

    Raises InputError: an option that timm refuses.
    """
    named = ("decay_epochs", "decay_milestones", "decay_rate", "patience_epochs")
    options = {key: getattr(config, key) for key in named if getattr(config, key) is not None} | config.kwargs
    try:
        with warnings.catch_warnings():  # plateau's, that timm does not save all of its state: `state_of` has it
            warnings.simplefilter("ignore", FutureWarning)
            scheduler, _ = create_scheduler_v2(
                optimizer,
                sched=config.name,
                num_epochs=max(1, train.epochs - config.cooldown_epochs),  # one also for a run without training
                warmup_epochs=config.warmup_epochs,
                warmup_lr=config.warmup_lr,
                min_lr=config.min_lr,
                plateau_mode="min" if train.eval_metric == "loss" else "max",
                step_on_epochs=config.name == "plateau",
                updates_per_epoch=steps_per_epoch,
                **options,
            )
    except (TypeError, ValueError) as error:
        raise InputError(f"schedule.name={config.name} cannot be built: {one_line(error)}") from error
    return scheduler


def notes_on_average(train: TrainConfig, steps: int) -> list[str]:
    """What a user should know before a run of so many steps: an average of weights that will hardly leave its start."""
    decay = train.ema_decay
    if not 0 < decay < 1 or train.ema_warmup or steps == 0 or (left := decay**steps) < 0.05:
        return []
    return [
        f"train.ema_decay={decay:g} is slow for {steps} steps: the averaged model, which is evaluated and kept in "
        f"best.pt, is still {left:.0%} its starting weights at the end; {0.01 ** (1 / steps):.4g} would leave 1 %"
    ]


def state_of(scheduler: Scheduler | None) -> dict[str, Any] | None:
    """What of a schedule depends on the run so far, and belongs into a checkpoint; None for all but plateau."""
    if not isinstance(scheduler, PlateauLRScheduler):
        return None
    return scheduler.lr_scheduler.state_dict() | {"restore_lr": scheduler.restore_lr}


def load_state(scheduler: Scheduler | None, state: dict[str, Any] | None) -> None:
    """Go on from what `state_of` gave. Older checkpoints lack `restore_lr`, the rates before the latest noise."""
    if isinstance(scheduler, PlateauLRScheduler) and state is not None:
        state = dict(state)
        scheduler.restore_lr = state.pop("restore_lr", None)
        scheduler.lr_scheduler.load_state_dict(state)


def build_loss(train: TrainConfig, device: torch.device | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean loss, on `device`, of (B, classes) logits: against (B,) labels, smoothed, or (B, classes) soft targets.

    Soft targets (mixup, cutmix) carry their smoothing already. A loss over splits takes them one after the other.
    """
    soft: nn.Module = SoftTargetCrossEntropy()
    hard: Callable[[Tensor, Tensor], Tensor] = nn.CrossEntropyLoss()
    if train.jsd_loss:
        hard = JsdCrossEntropy(num_splits=train.aug_splits, smoothing=train.smoothing)
    elif train.bce_loss:
        hard = soft = BinaryCrossEntropy(
            smoothing=train.smoothing,
            target_threshold=train.bce_target_thresh,
            sum_classes=train.bce_sum,
            pos_weight=train.bce_pos_weight,
        ).to(device)
    elif train.smoothing > 0:
        hard = LabelSmoothingCrossEntropy(train.smoothing)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return (soft if targets.is_floating_point() else hard)(logits.float(), targets)

    return loss


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The autocast dtype of `train.amp`; None for off. Raises InputError if it is not for this device."""
    if amp == "fp16" and device.type != "cuda":
        raise InputError(f"train.amp=fp16 needs a GPU, the device is {device}: use bf16 or off")
    return AMP_DTYPES[amp]
