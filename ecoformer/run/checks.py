"""Checks of a typed config before anything is built: settings that exclude each other, or the data."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ecoformer.config.keys import flat, keys_of
from ecoformer.config.schema import SCHEDULES, CompressConfig, Config, OptimConfig, ScheduleConfig
from ecoformer.energy.profile_files import load_profile
from ecoformer.errors import InputError
from ecoformer.files import refuse_overwriting, require_writable
from ecoformer.kinds import SPECS, make_spec
from ecoformer.model.low_rank import LowRankSpec
from ecoformer.nn.inputs import RGB, takes_sequences
from ecoformer.nn.specs import AttentionSpec, split_setting

SCHEDULE_KEYS: dict[str, tuple[str, ...]] = {  # which schedules take what
    "warmup_epochs": SCHEDULES[:-1],
    "cooldown_epochs": ("cosine", "tanh", "poly", "wsd", "rsqrt"),
    "decay_epochs": ("step", "wsd", "rsqrt"),
    "decay_milestones": ("multistep",),
    "decay_rate": ("step", "multistep", "plateau", "poly"),
    "patience_epochs": ("plateau",),
    "kwargs.k_decay": ("cosine", "poly"),
    "kwargs.decay_fn": ("wsd", "rsqrt"),
    "kwargs.stable_timescale": ("rsqrt",),
    "kwargs.noise": SCHEDULES[:-1],
}
# Arguments of timm.create_model that model.kwargs does not take, and what to write.
ELSEWHERE = {
    "in_chans": "write model.in_chans={}, which is a key of its own",
    "pretrained": "write init.pretrained={}, which is a key of its own",
    "checkpoint_path": "write init.checkpoint={}, which is a key of its own",
    "num_classes": "the data have their own: leave it out",
    "device": "write device={}, which is a key of its own",
    "features_only": "a run trains a classifier: leave it out",
}


def check_config(config: Config) -> list[str]:
    """Refuse what cannot work, with InputError; return notes on settings that were adapted to each other.

    The one adaptation: a run has at least one epoch after its warm-up, so `schedule.warmup_epochs` is lowered to
    `train.epochs - 1` where it is larger (short trial runs of the published recipes).
    """
    _check_hash_update(config)
    _check_augment(config)
    _check_train(config)
    _check_optim(config)
    _check_schedule(config)
    attention_spec(config.attention)
    low_rank_spec(config.compress)
    load_profile(config.energy.profile).require_counted(config.energy.convention)
    for kind in sorted(SPECS, key=len, reverse=True):  # one name may end in another
        if config.model.name.endswith(f"_{kind}"):
            stem = config.model.name.removesuffix(f"_{kind}")
            raise InputError(f"model.name={config.model.name} fixes the attention: use model={stem} attention={kind}")
    if config.distill.checkpoint is not None and config.distill.model is not None:
        raise InputError("distill.checkpoint and distill.model are two teachers: set one of them")
    if config.resume != "off" and config.overwrite:
        raise InputError("resume and overwrite=true contradict each other: set one of them")
    if config.dry_run_out is not None and not config.dry_run:
        raise InputError(f"dry_run_out={config.dry_run_out} is written by a dry run: add dry_run=true, or leave it out")
    read = [config.init.checkpoint, config.distill.checkpoint, config.resume, config.output_dir]
    refuse_overwriting(read, config.dry_run_out, (out := f"dry_run_out={config.dry_run_out}"))
    require_writable(config.dry_run_out, out)
    named = config.output_dir is not None or config.resume not in ("off", "auto")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not named and not config.dry_run:
        # Processes that are started again must find the folder of the run.
        raise InputError("several processes need one output_dir to share: add output_dir=DIR")
    notes = []
    if config.schedule.warmup_epochs > max(0, config.train.epochs - 1):
        notes.append(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs} does not fit train.epochs={config.train.epochs}: "
            f"warming up for {max(0, config.train.epochs - 1)}"
        )
        config.schedule.warmup_epochs = max(0, config.train.epochs - 1)
    return notes


def check_model(config: Config, sequences: Mapping[str, int]) -> None:
    """Refuse a model that does not go with the data; `sequences` as `start.build_model` takes them."""
    model, data = config.model, f"data.name={config.data.name}"
    if takes_sequences(model.name) != bool(sequences):
        takes, are, remedy = ("sequences of ids", "images", "data=listops, text_bytes or pixels")
        if sequences:
            takes, are, remedy = are, takes, "model=lra_encoder"
        raise InputError(f"model.name={model.name} takes {takes}, {data} are {are}: use {remedy}")
    for key, value in sequences.items():
        if (given := model.kwargs.get(key, value)) != value:
            raise InputError(f"model.kwargs.{key}={given}: {data} has {value}: leave it out")
    for key, value in model.kwargs.items():
        if key in ELSEWHERE:
            raise InputError(f"model.kwargs.{key}={value}: {ELSEWHERE[key].format(value)}")
    if sequences and model.in_chans != RGB:
        raise InputError(f"model.in_chans={model.in_chans} is for images, {data} are sequences: leave it out")


def attention_spec(attention: dict[str, Any]) -> AttentionSpec | None:
    """The spec that `config.attention` describes; None for stock. Raises InputError."""
    options = {key: value for key, value in attention.items() if key not in ("name", "layers", "rest")}
    spec = make_spec(attention.get("name", "stock"), options)
    rest_spec(attention)
    layers = attention.get("layers")
    if layers is None:
        return spec
    if spec is None:
        raise InputError("attention.layers chooses layers to replace, attention=stock replaces none: leave it out")
    valid = isinstance(layers, list) and layers and all(type(layer) in (int, str) for layer in layers)
    if not valid:
        raise InputError(f"attention.layers={layers!r} must be a list of stage numbers and name patterns, e.g. [1,2]")
    return spec


def rest_spec(attention: dict[str, Any]) -> AttentionSpec | None:
    """The spec of the layers that `attention.layers` leaves out; None: they stay as they are. Raises InputError."""
    rest = attention.get("rest")
    if rest is None:
        return None
    try:
        spec = make_spec(*split_setting(str(rest)))
    except InputError as error:
        raise InputError(f"attention.rest={rest}: {error}") from error
    if spec is None:
        raise InputError("attention.rest=stock: layers that are left out stay as they are; leave it out")
    if attention.get("layers") is None:
        raise InputError(f"attention.rest={rest} is of the layers that attention.layers leaves out: set that too")
    return spec


def all_settings(attention: dict[str, Any]) -> dict[str, Any]:
    """`config.attention` with the options that it does not name, as those that came after it was written."""
    spec = attention_spec(attention)
    return {"layers": None, "rest": None, **attention, **({} if spec is None else asdict(spec))}


def low_rank_spec(compress: CompressConfig) -> LowRankSpec | None:
    """The spec that `config.compress` describes; None without compression. Raises InputError."""
    if compress.layers is not None and not compress.layers:
        raise InputError("compress.layers=[] chooses nothing: give name patterns, or null for all but the classifier")
    options = {key: getattr(compress, key) for key in ("rank", "ratio", "energy")}
    if compress.name == "low_rank":
        return LowRankSpec(**options)
    given = [key for key, value in {**options, "layers": compress.layers}.items() if value is not None]
    if given:
        raise InputError(f"compress=none takes no options, got {', '.join(given)}: add compress=low_rank")
    return None


def _check_hash_update(config: Config) -> None:
    update, at = config.callbacks.hash_update, "callbacks.hash_update"
    if bool(update.warmup_steps) != bool(update.warmup_every) or update.warmup_every > update.warmup_steps:
        raise InputError(
            f"{at}.warmup_every={update.warmup_every} and warmup_steps={update.warmup_steps}: a warm-up fits every "
            "warmup_every steps while fewer than warmup_steps are done: set both, warmup_every the smaller, or neither"
        )
    late = [epoch for epoch in update.at_epochs if update.freeze_epoch is not None and epoch >= update.freeze_epoch]
    if late:
        raise InputError(
            f"{at}.at_epochs={update.at_epochs} asks for a fit at epoch {late[0]}, {at}.freeze_epoch="
            f"{update.freeze_epoch} ends them before: drop the epoch or raise freeze_epoch"
        )


def _check_optim(config: Config) -> None:
    optim = config.optim
    for key, value in optim.kwargs.items():
        if key in keys_of(OptimConfig):
            raise InputError(f"optim.kwargs.{key}={value}: write optim.{key}={value}, which is a key of its own")
    if optim.lr_base_scale != "linear" and not optim.lr_base_batch:
        raise InputError(
            f"optim.lr_base_scale={optim.lr_base_scale} scales from optim.lr_base_batch images a step: set that too"
        )
    if optim.clip_mode != "norm" and optim.clip_grad is None:
        raise InputError(f"optim.clip_mode={optim.clip_mode} clips nothing without a limit: set optim.clip_grad too")
    if optim.clip_mode != "norm" and config.train.parallel == "fsdp":
        raise InputError(f"optim.clip_mode={optim.clip_mode} needs whole gradients, train.parallel=fsdp: use ddp")
    if optim.layer_decay is not None and config.schedule.name == "none":  # timm's schedules apply it
        raise InputError("optim.layer_decay has no effect under schedule.name=none: use schedule=constant")


def _check_schedule(config: Config) -> None:
    schedule = config.schedule
    given = flat(asdict(schedule))
    for key, names in SCHEDULE_KEYS.items():
        if (value := given.get(key)) not in (None, 0) and schedule.name not in names:
            off = "set it to 0" if key == "warmup_epochs" else "leave it out"  # recipes have a warm-up
            raise InputError(
                f"schedule.{key}={value} has no effect under schedule.name={schedule.name}, only "
                f"under {', '.join(names)}: {off}"
            )
    for key, value in schedule.kwargs.items():
        if key in keys_of(ScheduleConfig):
            raise InputError(f"schedule.kwargs.{key}={value}: write schedule.{key}={value}, which is a key of its own")
        if key.startswith("cycle_") or key == "warmup_prefix":
            raise InputError(f"schedule.kwargs.{key}={value}: a run has one cycle of train.epochs here: leave it out")
    if schedule.cooldown_epochs and schedule.warmup_epochs + schedule.cooldown_epochs >= config.train.epochs > 0:
        raise InputError(
            f"schedule.warmup_epochs={schedule.warmup_epochs} and schedule.cooldown_epochs={schedule.cooldown_epochs} "
            f"leave nothing of train.epochs={config.train.epochs}, which they are part of: lower them"
        )


def _check_augment(config: Config) -> None:
    augment, train = config.augment, config.train
    mixed = augment.mixup > 0 or augment.cutmix > 0
    if mixed and train.batch_size % 2:
        raise InputError(
            f"augment.mixup and augment.cutmix mix pairs, train.batch_size={config.train.batch_size} is odd: "
            "use an even batch size, or set both to 0"
        )
    if augment.mixup_off_epoch and not mixed:
        raise InputError("augment.mixup_off_epoch ends a mixing that is off: set augment.mixup or augment.cutmix")
    if augment.color_jitter_prob is not None and augment.color_jitter == 0:
        raise InputError("augment.color_jitter_prob is the share of a jitter that is off: set augment.color_jitter")
    if train.aug_splits and (mixed or augment.auto_augment is None):
        raise InputError(
            f"train.aug_splits={train.aug_splits} puts each image beside itself under augment.auto_augment: set that, "
            "as augmix-m5-w4-d2, with augment.mixup=0 and augment.cutmix=0"
        )


def _check_train(config: Config) -> None:
    train = config.train
    if train.compile_mode is not None and not train.compile:
        raise InputError(f"train.compile_mode={train.compile_mode} has no effect: set train.compile=true too")
    if train.ema_warmup and train.ema_decay == 0:
        raise InputError("train.ema_warmup=true warms up an average that is off: set train.ema_decay")
    if train.jsd_loss and (not train.aug_splits or train.bce_loss):
        raise InputError("train.jsd_loss compares splits under one cross entropy: set train.aug_splits=3, no bce_loss")
    for key in ("bce_sum", "bce_target_thresh", "bce_pos_weight"):
        if getattr(train, key) and not train.bce_loss:
            raise InputError(f"train.{key}={getattr(train, key)} has no effect without train.bce_loss=true: set it too")
