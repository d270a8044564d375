"""config -> model, data, trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from hydra.utils import instantiate
from torch import nn

from ecoformer.config.schema import (
    Config,
    DataConfig,
    EnergyConfig,
    EvalConfig,
    InitConfig,
    ModelConfig,
    TrainConfig,
)
from ecoformer.data import DataModule, build_data
from ecoformer.data.identity import KnownClasses, ReorderedOutputs, difference_note, require_classes
from ecoformer.data.loader import per_channel
from ecoformer.data.module import where_of
from ecoformer.engine import distributed
from ecoformer.engine.callbacks import Callback, EnergyLog, FeatureRedraw
from ecoformer.engine.hash_update import HashUpdate
from ecoformer.engine.loggers import Logger
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.engine.rng import seed_everything
from ecoformer.engine.run_files import read_intact
from ecoformer.engine.tensorboard_logger import TensorBoardLogger
from ecoformer.engine.trainer import Trainer
from ecoformer.engine.wandb_logger import WandbLogger
from ecoformer.errors import InputError, one_line
from ecoformer.model.create import create, has_fixed_size
from ecoformer.model.layers import require_input
from ecoformer.nn.inputs import input_size
from ecoformer.run.directory import RunDir
from ecoformer.run.start import BuiltModel, SavedRun, build_model, checkpoint_in, is_own, model_of_run, read_run
from ecoformer.run.timm_weights import on_classes, timm_teacher

T = TypeVar("T")


@dataclass
class Run:
    """All the objects of a training run."""

    config: Config
    folder: RunDir
    data: DataModule
    built: BuiltModel
    trainer: Trainer


@dataclass
class Evaluation:
    """All the objects of an evaluation.

    Attributes:
        config: describes the evaluation, its `train` what trained the model.
        model: to be counted; `on_data` is the same, with the data's classes as outputs.
        origin: where the model comes from, for the figures.
    """

    config: Config
    data: DataModule
    model: nn.Module
    on_data: nn.Module
    device: torch.device
    amp: str
    origin: dict[str, Any]


@contextmanager
def session(device: str, *, threads: int | None, deterministic: bool = True) -> Iterator[torch.device]:
    """The process as the config wants it: its device and process group, CPU threads, deterministic algorithms."""
    if threads is not None:
        torch.set_num_threads(threads)
    # Before CUDA starts; cuBLAS is not deterministic without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # costs time, adds nothing
    torch.backends.cudnn.benchmark = not deterministic
    try:
        yield distributed.init_distributed(device)
    finally:
        distributed.close_distributed()


def settle(config: Config) -> None:
    """Put what `train.amp=auto` and `deterministic=null` mean on this machine into the config, which the run saves."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    if config.train.amp == "auto":
        config.train.amp = "off" if not on_gpu else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if config.deterministic is None:
        config.deterministic = not on_gpu


def build_run(config: Config, folder: RunDir, device: torch.device, data: DataModule | None = None) -> Run:
    """Data (unless given), model and trainer; nothing is written. Raises InputError for what the user can mend."""
    known = None if data is not None else known_classes(config, folder)
    data = data or _data(config, config.train, device, known=known)
    seed_everything(config.seed)  # new weights are the same on every rank
    sequences = sequences_of(data)
    if sequences and config.train.channels_last:
        raise InputError(f"train.channels_last=true is a layout of images, data.name={data.name} are sequences: unset")
    built = build_model(config, data.num_classes, sequences=sequences, resume=folder.resume)
    built.notes += data.notes
    if known is not None and (note := difference_note(known, data.class_names, where_of(config.data))):
        built.notes.append(note)
    if built.from_timm:
        built.notes += data_config_note(built.model, data)
    freeze(built.model, config.train.freeze)
    if config.train.grad_checkpointing:
        checkpoint_gradients(built.model)
    callbacks: list[Callback] = [
        HashUpdate(config.callbacks.hash_update),
        FeatureRedraw(config.callbacks.feature_redraw),
    ]
    if config.callbacks.energy_log.enabled:
        callbacks.append(EnergyLog(config.energy))
    callbacks += made(config.callbacks.extra, "callbacks.extra", Callback)
    loggers: list[Logger] = [WandbLogger(config.logger.wandb)] if config.logger.wandb.enabled else []
    if config.logger.tensorboard.enabled:
        loggers.append(TensorBoardLogger())
    loggers += made(config.logger.extra, "logger.extra", Logger)
    trainer = Trainer(
        built.model,
        data,
        train=config.train,
        optim=config.optim,
        schedule=config.schedule,
        checkpoint=config.checkpoint,
        run_dir=folder.path,
        device=device,
        seed=config.seed,
        callbacks=callbacks,
        loggers=loggers,
        config={"settings": asdict(config), "class_names": list(data.class_names), "sequences": sequences},
        teacher=logit_teacher(config, data),
    )
    if folder.resume is not None:
        trainer.restore(folder.resume)  # refuses another run's before anything is written
    return Run(config, folder, data, built, trainer)


def _data(config: Config, train: TrainConfig, device: torch.device, **options: Any) -> DataModule:
    options |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
    options |= {"seed": config.seed, "device": device, "in_chans": config.model.in_chans}
    return build_data(config.data, config.augment, train, **options)


def sequences_of(data: DataModule) -> dict[str, int]:
    """What a model of sequences must know of them: `vocab_size` and `seq_len`; nothing of images."""
    sizes = {"vocab_size": data.vocab_size, "seq_len": data.seq_len}
    return {key: value for key, value in sizes.items() if value is not None}


def data_config_note(model: nn.Module, data: DataModule) -> list[str]:
    """A note where timm's weights saw images that were normalised or cropped otherwise than the data are."""
    theirs = timm.data.resolve_model_data_config(model)
    theirs |= {key: per_channel(theirs[key], len(data.mean)) for key in ("mean", "std")}
    own = {
        "mean": tuple(data.mean),  # a list where it was typed
        "std": tuple(data.std),
        "crop_pct": data.eval_transform.crop_pct,
        "interpolation": data.eval_transform.interpolation,
    }
    differ = [key for key, value in own.items() if theirs[key] != value]
    if not differ:
        return []
    took = ", ".join(f"{key} {own[key]}" for key in differ)
    typed = " ".join(
        f"data.{key}={str(theirs[key]).replace(' ', '').replace('(', '[').replace(')', ']')}" for key in differ
    )
    return [f"timm's weights were trained with other settings of the data than {took}: theirs are {typed}"]


def made(items: list[Any], key: str, base: type[T]) -> list[T]:
    """What `callbacks.extra` or `logger.extra` describes, by Hydra's `_target_`. Raises InputError for what fails."""
    objects = []
    for item in items:
        if not isinstance(item, dict) or "_target_" not in item:
            raise InputError(f"{key}: {item} must be a mapping with _target_: MODULE.CLASS and the class's arguments")
        try:
            found = instantiate(item)
        except Exception as error:
            reason = one_line(error.__cause__ or error)
            raise InputError(f"{key}: {item['_target_']} cannot be made: {reason}") from error
        if not isinstance(found, base):
            raise InputError(f"{key}: {item['_target_']} is no {base.__module__}.{base.__name__}: derive it from that")
        objects.append(found)
    return objects


def known_classes(config: Config, folder: RunDir) -> KnownClasses | None:
    """The classes of the checkpoint that a run goes on or starts from and keeps the classifier of; None without one."""
    path = folder.resume
    if path is None and config.init.checkpoint is not None and not config.init.reset_head:
        path = checkpoint_in(Path(config.init.checkpoint).expanduser())
        if not is_own(path):
            return None
    if path is None:
        return None
    path, run = read_intact(path, read_run)
    return KnownClasses(run.class_names, f"checkpoint {path}", required=False)


def checkpoint_gradients(model: nn.Module) -> None:
    """Have timm's model keep no block's features for the backward pass. Raises InputError for one that cannot."""
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise InputError(f"train.grad_checkpointing=true: {type(model).__name__} cannot: leave it out") from error


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Leave parameters out of training. Raises InputError for a pattern (fnmatch) without any, or if none is left."""
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in parameters if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(
                f"train.freeze: {pattern!r} matches no parameter; there are {', '.join(list(parameters)[:3])}, ..."
            )
        for name in found:
            parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"train.freeze={patterns} leaves nothing to train: use train.epochs=0 or freeze less")


def logit_teacher(config: Config, data: DataModule) -> LogitTeacher | None:
    """The model of `distill`; None without. Raises InputError if it was trained on other classes."""
    distill, where = config.distill, where_of(config.data)
    if distill.model is not None:
        return LogitTeacher(timm_teacher(distill.model, data, where), distill.weight, distill.temperature)
    if distill.checkpoint is None:
        return None
    run = read_run(distill.checkpoint)
    order = require_classes(KnownClasses(run.class_names, f"distill.checkpoint={run.path}"), data.class_names, where)
    if run.config.model.in_chans != len(data.mean):
        raise InputError(
            f"distill.checkpoint={run.path} sees images of {run.config.model.in_chans} channels, model.in_chans="
            f"{len(data.mean)}: make them the same"
        )
    model = model_of_run(run)
    if order != sorted(order):
        model = ReorderedOutputs(model, order)
    return LogitTeacher(model, distill.weight, distill.temperature)


def build_evaluation(config: EvalConfig, device: torch.device) -> Evaluation:
    """Model and validation data of a checkpoint, or of a timm model.

    Raises InputError: no checkpoint, a damaged one, one of another attention kind than asked for, other classes.
    """
    if config.model.name is not None:
        return _timm_evaluation(config, config.model.name, device)
    assert config.checkpoint is not None, "require_present() comes first"
    run = read_run(config.checkpoint)
    saved = run.config
    _require_attention(config, run)
    train = replace(saved.train, progress=config.progress)
    if config.batch_size is not None:
        train = replace(train, eval_batch_size=config.batch_size)
    amp = config.amp or saved.train.amp
    known = KnownClasses(run.class_names, f"checkpoint {run.path}")
    data_config = replace(saved.data, **_given(config.data))
    data = _data(replace(saved, data=data_config), train, device, with_train=False, known=known)
    model = model_of_run(run)
    require_input(model, input_size(model, data.img_size))
    model.to(device)
    # From here on `saved` describes the evaluation.
    saved.data, saved.energy = data_config, replace(saved.energy, **_given(config.energy))
    origin = {"checkpoint": str(run.path), "epochs": run.content["epoch"]}
    return Evaluation(saved, data, model, model, device, amp, origin)


def _timm_evaluation(config: EvalConfig, name: str, device: torch.device) -> Evaluation:
    """A timm model with timm's weights, on images as timm's validate.py shows them, unless `config.data` says else."""
    size = config.data.img_size
    model = create(name, key="model", img_size=size, pretrained=True, pretrained_key="pretrained=true")
    theirs = timm.data.resolve_model_data_config(model, use_test_size=not has_fixed_size(name))
    defaults = DataConfig(
        name="folder",
        img_size=theirs["input_size"][-1],
        crop_pct=theirs["crop_pct"],
        interpolation=theirs["interpolation"],
        mean=list(theirs["mean"]),
        std=list(theirs["std"]),
    )
    described = Config(
        name=name,
        model=ModelConfig(name=name),
        data=replace(defaults, **_given(config.data)),
        init=InitConfig(pretrained=True),
        energy=replace(EnergyConfig(), **_given(config.energy)),
    )
    train = replace(described.train, progress=config.progress, eval_batch_size=config.batch_size)
    data = _data(described, train, device, with_train=False)
    if theirs["crop_mode"] not in (None, "center"):
        data.notes.append(f"timm evaluates {name} with crop_mode={theirs['crop_mode']}, here it is a central crop")
    require_input(model, data.img_size)
    on_data = on_classes(model, name, data, where_of(described.data))
    return Evaluation(described, data, model, on_data.to(device), device, config.amp or "off", {})


def _given(options: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(options).items() if value is not None}


def _require_attention(config: EvalConfig, run: SavedRun) -> None:
    wanted, kind = config.attention.get("name"), run.config.attention["name"]
    if wanted is None or wanted == kind:
        return
    remedy = (
        f"convert and fit it by training: python train.py attention={wanted} init.checkpoint={run.path} ..."
        if wanted != "stock"
        else "give the checkpoint of a stock run"
    )
    raise InputError(f"checkpoint {run.path} is a {kind} model, not {wanted}: {remedy}")
