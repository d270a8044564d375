"""config -> model, data, trainer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import timm
import torch
from torch import nn

from ecoformer.config.keys import check_limits
from ecoformer.config.schema import (
    IMAGENET_TESTS,
    Config,
    DataConfig,
    EnergyConfig,
    EvalConfig,
    InitConfig,
    ModelConfig,
    TrainConfig,
)
from ecoformer.data import DataModule, build_data
from ecoformer.data.identity import KnownClasses, difference_note, on_classes
from ecoformer.data.imagenet import as_synsets
from ecoformer.data.module import where_of
from ecoformer.engine import distributed
from ecoformer.engine.callbacks import Callback, EnergyLog, FeatureRedraw
from ecoformer.engine.hash_update import HashUpdate
from ecoformer.engine.loggers import Logger
from ecoformer.engine.rng import seed_everything
from ecoformer.engine.run_files import read_intact
from ecoformer.engine.tensorboard_logger import TensorBoardLogger
from ecoformer.engine.trainer import Trainer
from ecoformer.engine.wandb_logger import WandbLogger
from ecoformer.errors import InputError
from ecoformer.files import user_path
from ecoformer.model.create import create, has_fixed_size
from ecoformer.model.layers import require_input
from ecoformer.nn.base import given
from ecoformer.nn.inputs import input_size
from ecoformer.run.directory import RunDir
from ecoformer.run.parts import checkpoint_gradients, data_config_note, freeze, logit_teacher, made, sequences_of
from ecoformer.run.saved import data_of
from ecoformer.run.start import BuiltModel, SavedRun, build_model, checkpoint_in, is_own, model_of_run, read_run
from ecoformer.run.timm_weights import timm_on_classes


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
    update, redraw = config.callbacks.hash_update, config.callbacks.feature_redraw
    hash_update = HashUpdate(update)
    callbacks: list[Callback] = [hash_update, FeatureRedraw(redraw)]
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
        trainer.state.restore(folder.resume)  # refuses another run's before anything is written
    hash_update.require_first_fit(trainer)
    if hash_update.fits_later(trainer, config.train.epochs):
        data.require_calibration_images(update.num_images)
    return Run(config, folder, data, built, trainer)


def _data(config: Config, train: TrainConfig, device: torch.device, **options: Any) -> DataModule:
    options |= {"rank": distributed.rank(), "world_size": distributed.world_size()}
    options |= {"seed": config.seed, "device": device, "in_chans": config.model.in_chans}
    return build_data(config.data, config.augment, train, **options)


def known_classes(config: Config, folder: RunDir) -> KnownClasses | None:
    """The classes of the checkpoint that a run goes on or starts from and keeps the classifier of; None without one."""
    path = folder.resume
    if path is None and config.init.checkpoint is not None and not config.init.reset_head:
        path = checkpoint_in(user_path(config.init.checkpoint))
        if not is_own(path):
            return None
    if path is None:
        return None
    path, run = read_intact(path, read_run)
    return KnownClasses(run.class_names, f"checkpoint {path}", required=False)


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
    data_config = data_of(run, asked := given(**asdict(config.data)))
    options: dict[str, Any] = {"known": known}
    if of_imagenet := data_config.name in IMAGENET_TESTS:  # which know their classes, and have no training split
        data_config.dev_samples, options = 0, {}
    data = _data(replace(saved, data=data_config), train, device, with_train=False, **options)
    if (data.vocab_size or 0) > run.sequences.get("vocab_size", 0):
        raise InputError(
            f"checkpoint {run.path} knows {run.sequences.get('vocab_size', 'no')} ids, the data have "
            f"{data.vocab_size}: give data with ids that it was trained on"
        )
    if data_config.name != saved.data.name and not run.sequences and not {"mean", "std", "crop_pct"} <= asked.keys():
        data.notes.append(f"normalised and cropped as data={saved.data.name}, which the checkpoint was trained on")
    model = on_data = model_of_run(run)
    require_input(model, input_size(model, data.img_size))
    if of_imagenet:
        on_data = on_classes(model, as_synsets(known), data.class_names, where_of(data_config))
    on_data.to(device)
    # From here on `saved` describes the evaluation.
    saved.data, saved.energy = data_config, replace(saved.energy, **given(**asdict(config.energy)))
    origin = {"checkpoint": str(run.path), "epochs": run.content["epoch"]}
    return Evaluation(saved, data, model, on_data, device, amp, origin)


def _timm_evaluation(config: EvalConfig, name: str, device: torch.device) -> Evaluation:
    """A timm model with timm's weights, on images as timm's validate.py shows them, unless `config.data` says else."""
    size = config.data.img_size
    asked = given(in_chans=config.model.in_chans)
    model = create(name, key="model", img_size=size, pretrained=True, pretrained_key="pretrained=true", options=asked)
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
        model=ModelConfig(name=name, in_chans=config.model.in_chans or theirs["input_size"][0]),
        data=replace(defaults, **given(**asdict(config.data))),
        init=InitConfig(pretrained=True),
        energy=replace(EnergyConfig(), **given(**asdict(config.energy))),
    )
    check_limits(described)  # weights may be for channels that no image has
    train = replace(described.train, progress=config.progress, eval_batch_size=config.batch_size)
    data = _data(described, train, device, with_train=False)
    if theirs["crop_mode"] not in (None, "center"):
        data.notes.append(f"timm evaluates {name} with crop_mode={theirs['crop_mode']}, here it is a central crop")
    require_input(model, data.img_size)
    on_data = timm_on_classes(model, name, data, where_of(described.data))
    return Evaluation(described, data, model, on_data.to(device), device, config.amp or "off", {})


def _require_attention(config: EvalConfig, run: SavedRun) -> None:
    wanted, kind = config.attention.get("name"), run.config.attention["name"]
    if wanted is None or wanted == kind:
        return
    remedy = (
        f"convert and fit it by training: python train.py attention={wanted} init.checkpoint={run.path} ..."
        if wanted != "stock"
        else "give the checkpoint of a stock run"
    )
    raise InputError(f"checkpoint {run.path} has {kind} attention, not {wanted}: {remedy}")
