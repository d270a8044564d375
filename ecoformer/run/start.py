"""A model with the weights it starts from, in the attention asked for.

They are new, timm's, those of one of our runs, or those of a file that others published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from ecoformer.config.schema import CompressConfig, Config
from ecoformer.errors import InputError, counted
from ecoformer.files import user_path
from ecoformer.model.checkpoint import evaluated_weights, load_checkpoint, load_weights
from ecoformer.model.chosen import compress_filter, layer_filter
from ecoformer.model.convert import convert
from ecoformer.model.create import create, has_fixed_size
from ecoformer.model.layers import attention_layers
from ecoformer.model.low_rank import CompressionReport, expand, low_rank_layers, ranks_in, take_ranks
from ecoformer.model.resize import fit_sizes, set_in_chans, set_patch_stride
from ecoformer.models.dims import dims_of, in_chans_of, num_classes_of, vit_img_size
from ecoformer.models.official import ForeignWeights, read_foreign, same_family
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.inputs import RGB, input_size
from ecoformer.nn.layout import STOCK_STRIDE
from ecoformer.run.checks import attention_spec, check_model, low_rank_spec, rest_spec
from ecoformer.run.saved import SavedRun, checkpoint_in, is_own, read_run
from ecoformer.run.summary import factorize_and_count


@dataclass
class BuiltModel:
    """A model, in words where its weights come from, and notes on what was adapted on the way.

    `compression` reports a compression that was done just now; None for one that a checkpoint brought along.
    `from_timm`: they are timm's, from its cache or a file, so that its data settings are theirs.
    """

    model: nn.Module
    origin: str
    notes: list[str] = field(default_factory=list)
    compression: CompressionReport | None = None
    from_timm: bool = False


def build_model(
    config: Config,
    num_classes: int,
    *,
    sequences: Mapping[str, int] = MappingProxyType({}),
    with_weights: bool = True,
    resume: Path | None = None,
) -> BuiltModel:
    """The configured model.

    `sequences`: `vocab_size` and `seq_len` of the data; empty for images. `resume`: the checkpoint of a resumed run,
    which its trainer loads later. `with_weights=False`: for counting only; a compressed model is then on meta tensors.

    Raises InputError: unknown model or argument, weights that cannot be had, attention or compression that does not
    fit.
    """
    with_weights = with_weights and resume is None
    if with_weights and config.init.checkpoint is not None:
        path = checkpoint_in(user_path(config.init.checkpoint))
        if is_own(path):
            return _from_run(config, read_run(path), num_classes, sequences)
        weights = read_foreign(path, config.init.use_ema)
        built = _from_run(config, foreign_run(weights, config), num_classes, sequences)
        found = [f"{path}: {weights.layout} weights; {weights.report.summary()}", *weights.notes]
        built.notes = found + built.notes
        built.from_timm = weights.layout.startswith("timm")
        return built
    pretrained = config.init.pretrained and with_weights
    model = _create(config, num_classes, pretrained, sequences)
    notes = _convert(model, config)
    built = BuiltModel(model, "timm's pretrained weights" if pretrained else "new", notes, from_timm=pretrained)
    if config.compress.name == "none":
        return built
    if resume is not None:
        take_ranks(model, ranks_in(load_checkpoint(resume)["model"]))
        return built
    if not with_weights:
        model.to("meta")
    _compress(built, config)
    return built


def model_of_run(run: SavedRun, *, drop_path_rate: float = 0.0) -> nn.Module:
    """The model of a checkpoint, as its run evaluated it (averaged weights where it kept them)."""
    config = run.config
    config.model.drop_path_rate = drop_path_rate
    model = _create(config, len(run.class_names), pretrained=False, sequences=run.sequences)
    _convert(model, config)
    weights = evaluated_weights(run.content)
    if config.compress.name != "none":
        take_ranks(model, ranks_in(weights))
    load_weights(model, weights, run.path)
    return model


def foreign_run(weights: ForeignWeights, config: Config, class_names: list[str] | None = None) -> SavedRun:
    """A published file as if one of our runs had written it; `config` says which model it is for.

    Args:
        class_names: where they are known; else the classes are called by their numbers.
    Raises:
        InputError: the model has other dimensions, or the file does not fill it; see `weights.report` for every key.
    """
    dims, size = dims_of(weights.tensors), weights.img_size
    if not dims:  # a plain ViT has a position embedding for one size; relative positions are fitted to that asked for
        size = vit_img_size(weights.tensors) if "pos_embed" in weights.tensors else config.data.img_size
    saved = replace(
        config,
        model=replace(config.model, in_chans=in_chans_of(weights.tensors), patch_stride=None, drop_path_rate=0.0),
        attention=weights.attention,
        compress=CompressConfig(),
        data=replace(config.data, img_size=size),
    )
    num_classes = num_classes_of(weights.tensors, config.model.name)
    model = _create(saved, num_classes, pretrained=False)
    # Of weights that miss what shows their dimensions the report says so.
    own = {} if not dims and same_family(weights, model.state_dict()) else dims_of(model.state_dict())
    for key in ("embed_dims", "depths", "mlp_ratios"):
        if dims.get(key) != own.get(key):
            raise InputError(
                f"{weights.path} has {key}={dims.get(key)}, model.name={config.model.name} has {own.get(key)}: "
                "name the model that the weights are for"
            )
    _convert(model, saved)
    report = weights.compare(model.state_dict())
    if not report.complete:
        kind, keys = ("misses", report.missing) if report.missing else ("has unknown", report.unknown)
        raise InputError(
            f"{weights.path} {kind} {counted(len(keys), 'key')} (first {keys[0]}): "
            "python scripts/import_official.py lists what becomes of every key"
        )
    names = class_names or [str(index) for index in range(num_classes)]
    tensors, notes = fit_sizes(weights.tensors, model)
    weights.notes += notes
    return SavedRun(weights.path, {"epoch": 0, "model": tensors}, saved, names)


def _from_run(config: Config, run: SavedRun, num_classes: int, sequences: Mapping[str, int]) -> BuiltModel:
    saved, wanted = run.config, config
    where = f"init.checkpoint={run.path}"
    from_rgb = saved.model.in_chans == RGB  # which becomes any number of channels, as timm does it
    for key in ("name", "kwargs") if from_rgb else ("name", "kwargs", "in_chans"):
        held, asked = getattr(saved.model, key), getattr(wanted.model, key)
        if held != asked:
            raise InputError(f"{where} was trained with model.{key}={held}, now it is {asked}: make them the same")
    if run.sequences != sequences:
        then, now = (", ".join(f"{key}={n}" for key, n in side.items()) for side in (run.sequences, sequences))
        raise InputError(
            f"{where} was trained on {then or 'images'}, the data have {now or 'images'}: set data.name and "
            "data.seq_len to those of that run"
        )
    if len(run.class_names) != num_classes and not wanted.init.reset_head:
        raise InputError(
            f"{where} has {len(run.class_names)} classes, the data have {num_classes}: "
            "set init.reset_head=true for a new classifier head"
        )
    kinds = f"{saved.attention['name']} -> {wanted.attention['name']}"
    if wanted.attention["name"] == "stock" and saved.attention["name"] != "stock":
        raise InputError(f"{where} cannot be turned back into stock attention ({kinds}): start from a stock run")
    model = model_of_run(run, drop_path_rate=wanted.model.drop_path_rate)
    stride, saved_stride = (side.model.patch_stride or STOCK_STRIDE for side in (wanted, saved))
    built = BuiltModel(model, f"{run.path} ({kinds}), epoch {run.content['epoch']}")
    same = (saved.compress, saved.attention, saved_stride) == (wanted.compress, wanted.attention, stride)
    if low_rank_layers(model) and not same:
        built.notes.append(f"the checkpoint's {len(expand(model))} low-rank layers were multiplied out to full weights")
    if stride != saved_stride:
        set_patch_stride(model, stride)
    _resize(built, saved, wanted, where)
    if (channels := wanted.model.in_chans) != saved.model.in_chans:
        set_in_chans(model, channels)
        built.notes.append(f"first convolution: weights of {RGB} channels made {channels}, as timm")
    if len(run.class_names) != num_classes:
        model.reset_classifier(num_classes)  # type: ignore[operator]
        built.notes.append(f"new classifier head: {len(run.class_names)} -> {num_classes} classes")
    built.notes += _convert(model, wanted)
    _require_rest(model, wanted.attention, where)
    if not low_rank_layers(model):
        _compress(built, wanted)
    return built


def _require_rest(model: nn.Module, attention: Mapping[str, Any], where: str) -> None:
    """Raise InputError for a layer that keeps a kind of its checkpoint's of which the config would not say a word."""
    chosen = layer_filter(model, attention)
    if chosen is None or attention.get("rest") is not None:
        return
    for layer in attention_layers(model):
        if isinstance(layer.module, ReplacementAttention) and not chosen(layer.module, layer.name):
            kind = layer.module.spec.setting()
            raise InputError(
                f"{where} has {kind} in {layer.name}, which attention.layers leaves out: set attention.rest={kind}, or "
                "name this layer too"
            )


def _resize(built: BuiltModel, saved: Config, wanted: Config, where: str) -> None:
    """Fit a model that is made for one image size to another, as timm does: by resampling its position embedding."""
    size, before = wanted.data.img_size, saved.data.img_size
    if size == before or not has_fixed_size(wanted.model.name):
        return
    resize = getattr(built.model, "set_input_size", None)
    if resize is None:
        raise InputError(
            f"{where} is for {before} px images and {wanted.model.name} knows no other size: set data.img_size={before}"
        )
    try:
        resize(img_size=size)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where} cannot be fitted to data.img_size={size}: {error}; set data.img_size={before}"
        ) from error
    built.notes.append(f"position embedding resized for {size} px images, the weights were trained on {before} px")


def _create(
    config: Config, num_classes: int, pretrained: bool, sequences: Mapping[str, int] = MappingProxyType({})
) -> nn.Module:
    check_model(config, sequences)
    model = config.model
    options: dict[str, Any] = {**model.kwargs, **sequences, "num_classes": num_classes}
    if model.in_chans != RGB:
        options["in_chans"] = model.in_chans
    if model.drop_path_rate > 0:
        options["drop_path_rate"] = model.drop_path_rate
    size = None if sequences else config.data.img_size  # a model's own argument of that name goes before it
    return create(model.name, img_size=size, patch_stride=model.patch_stride, pretrained=pretrained, options=options)


def _convert(model: nn.Module, config: Config) -> list[str]:
    spec = attention_spec(config.attention)
    if spec is None:
        return []
    size = input_size(model, config.data.img_size)
    return convert(model, spec, layer_filter(model, config.attention), size, rest=rest_spec(config.attention)).notes


def _compress(built: BuiltModel, config: Config) -> None:
    spec = low_rank_spec(config.compress)
    if spec is None:
        return
    chosen = compress_filter(built.model, config.compress)
    size, profile = input_size(built.model, config.data.img_size), config.energy.profile
    built.compression = factorize_and_count(built.model, spec, chosen, img_size=size, profile=profile)
