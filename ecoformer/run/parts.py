"""Parts of a run beside its model and data: callbacks of others, a teacher, what of the model is not trained."""

from fnmatch import filter as matching
from typing import Any, TypeVar

import timm
from hydra.utils import instantiate
from torch import nn

from ecoformer.config.schema import Config
from ecoformer.data import DataModule
from ecoformer.data.identity import KnownClasses, ReorderedOutputs, require_classes
from ecoformer.data.loader import per_channel
from ecoformer.data.module import where_of
from ecoformer.engine.logit_teacher import LogitTeacher
from ecoformer.errors import InputError, one_line
from ecoformer.model.chosen import chosen
from ecoformer.model.layers import require_input
from ecoformer.nn.base import given
from ecoformer.nn.inputs import input_size
from ecoformer.run.saved import statistics_of
from ecoformer.run.start import model_of_run, read_run
from ecoformer.run.timm_weights import Renormalised, timm_teacher

T = TypeVar("T")


def data_config_note(model: nn.Module, data: DataModule) -> list[str]:
    """A note where timm's weights saw images that were normalised or cropped otherwise than the data are."""
    theirs = timm.data.resolve_model_data_config(model)
    theirs |= {key: per_channel(theirs[key], len(data.mean)) for key in ("mean", "std")}
    own = {
        "mean": tuple(data.mean),  # a list where it was typed
        "std": tuple(data.std),
        "crop_pct": data.reader.transform.crop_pct,
        "interpolation": data.reader.transform.interpolation,
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


def checkpoint_gradients(model: nn.Module) -> None:
    """Have timm's model keep no block's features for the backward pass. Raises InputError for one that cannot."""
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise InputError(f"train.grad_checkpointing=true: {type(model).__name__} cannot: leave it out") from error


def freeze(model: nn.Module, patterns: list[str]) -> None:
    """Leave parameters out of training. Raises InputError for a pattern (fnmatch) without any, or if none is left."""
    parameters = dict(model.named_parameters())
    others = f"parameter; there are {', '.join(list(parameters)[:3])}, ..."
    for name in chosen(patterns, lambda pattern: matching(parameters, pattern), "train.freeze", others):
        parameters[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(f"train.freeze={patterns} leaves nothing to train: use train.epochs=0 or freeze less")


def sequences_of(data: DataModule) -> dict[str, int]:
    """What a model of sequences must know of them: `vocab_size` and `seq_len`; nothing of images."""
    return given(vocab_size=data.vocab_size, seq_len=data.seq_len)


def logit_teacher(config: Config, data: DataModule) -> LogitTeacher | None:
    """The model of `distill`, which sees images as it was trained on them; None without.

    Raises InputError if it was trained on other classes, or takes no such images or sequences.
    """
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
    known, needed = run.sequences, sequences_of(data)
    if bool(known) != bool(needed) or any(known[key] < value for key, value in needed.items()):
        said = [", ".join(f"{key}={value}" for key, value in each.items()) or "images" for each in (known, needed)]
        raise InputError(f"distill.checkpoint={run.path} takes {said[0]}, the data are {said[1]}: give another one")
    model = model_of_run(run)
    try:
        require_input(model, input_size(model, data.img_size))
    except InputError as error:
        raise InputError(f"distill.checkpoint={run.path}: {error}") from error
    differ = any(getattr(run.config.data, key) != getattr(config.data, key) for key in ("name", "mean", "std"))
    if differ and not known and (seen := (tuple(data.mean), tuple(data.std))) != (theirs := statistics_of(run)):
        model = Renormalised(model, seen, theirs)
    if order != sorted(order):
        model = ReorderedOutputs(model, order)
    return LogitTeacher(model, distill.weight, distill.temperature)
