"""convert(model, spec): replace a timm model's attention in place, carry its weights over, report what was done."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ecoformer.errors import InputError, require
from ecoformer.kinds import BUILDERS
from ecoformer.model.layers import (
    FilterFn,
    LayerInfo,
    attention_layers,
    refuse_wrapped,
    replace_modules,
    token_counts,
)
from ecoformer.nn.bert import unreadable
from ecoformer.nn.inputs import Input, Size
from ecoformer.nn.layout import is_oblong
from ecoformer.nn.msa import MSASpec
from ecoformer.nn.no_reader import no_reader
from ecoformer.nn.projections import SeatMaker, read_projections, require_plain
from ecoformer.nn.specs import AttentionSpec


@dataclass(frozen=True)
class LayerChange:
    """What happened to one layer. `new` names the parts that hold no trained weights yet."""

    name: str
    stage: int
    source: str
    target: str
    spec: AttentionSpec
    num_tokens: int | None
    copied: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]


@dataclass
class ConversionReport:
    """Replaced layers, layers that already were what was asked for, and notes on settings that were lowered."""

    replaced: list[LayerChange] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{change.name}: {change.source} -> {change.target}; copied {_listed(change.copied)}; "
            f"dropped {_listed(change.dropped)}; new {_listed(change.new)}"
            for change in self.replaced
        ]
        lines += [f"{name}: kept as it is" for name in self.kept]
        return "\n".join([*lines, *self.notes])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing"


@torch.inference_mode(False)  # what it made there could neither be trained nor fitted
def convert(
    model: nn.Module,
    spec: AttentionSpec,
    filter_fn: FilterFn | None = None,
    img_size: Size | None = None,
    *,
    rest: AttentionSpec | None = None,
    example_input: Input | None = None,
) -> ConversionReport:
    """Replace attention layers of `model` in place and return what was done. Converting twice changes nothing.

    By default every stage but the last gets `spec` and the last becomes (Twins) or stays (PVTv2) plain softmax
    attention, as published; in a plain ViT every layer gets `spec`. Device, dtype and training mode carry over, and
    `requires_grad` parameter by parameter; what is new trains where anything of the layer did. Convert before
    building an optimizer, wrapping the model (DistributedDataParallel) and compiling it.

    Args:
        model: a timm PVTv2, Twins or ViT/DeiT, another backbone of docs/backbones.md, `lra_encoder`, a BERT of
            transformers (docs/bert.md), or one that was converted before.
        spec: what to build, e.g. `EcoFormerSpec(num_bits=8)`.
        filter_fn: (module, name) -> bool chooses the layers instead; the others stay as they are, or become `rest`.
        example_input: checks the spec against the token count of every layer for it: a tensor, a tuple of arguments
            or a mapping of keyword arguments, of which shapes and dtypes matter alone.
        img_size: the short form, a size alone: of images in pixels, of a model of sequences in tokens.
    Raises:
        InputError: no module or no spec, nothing to convert, a layer that cannot be carried over, or settings that do
            not fit the token count. The model is then unchanged.
    """
    require(model, nn.Module, "Module: create the model first, as timm.create_model(NAME)", "convert: ")
    require(spec, AttentionSpec, "AttentionSpec: give one, as EcoFormerSpec()", "convert: ")
    require(filter_fn, Callable | None, "function of (module, name): give one that says yes or no", "filter_fn=")
    require(rest, AttentionSpec | None, "AttentionSpec: give one, as MSASpec()", "convert: rest=")
    if rest is not None and filter_fn is None:
        raise InputError("convert: rest is of the layers that filter_fn leaves out: give filter_fn too")
    refuse_wrapped(model, "convert")
    layers = attention_layers(model)
    if not layers:
        raise InputError(
            f"{type(model).__name__} has no attention that can be converted: {unreadable(model)}{no_reader(model)}"
            "choose a timm PVTv2, Twins or ViT, or a BERT (docs/backbones.md has them all, and how to add one)"
        )
    if not layers[0].name:
        raise InputError(f"{type(model).__name__} is an attention layer: give the model that holds it")
    planned = _plan(layers, spec, filter_fn, rest)
    if not any(wanted == spec for _, wanted in planned):
        remedy = "choose them by filter_fn, as lambda module, name: True (in a config by attention.layers)"
        default = f"all {len(layers)} are in the last stage, which gets softmax attention by default: {remedy}"
        none = f"the layer filter matches none of {len(layers)} attention layers: {layers[0].name}, ..."
        raise InputError(f"convert: no attention layer gets {spec.setting()}: {default}" if filter_fn is None else none)
    for layer, wanted in planned:
        if not wanted.is_met_by(layer.module):
            require_plain(layer.module, layer.where)
    given = img_size if example_input is None else example_input
    tokens = {} if given is None else token_counts(model, given)
    report = ConversionReport()
    swaps: dict[nn.Module, tuple[nn.Module, SeatMaker | None]] = {}
    for layer, wanted in planned:
        num_tokens = tokens.get(layer.name)
        fitting = wanted if num_tokens is None else wanted.fit_to_tokens(num_tokens, layer.where)
        if lowered := _lowered(wanted, fitting):
            report.notes.append(f"{layer.where} has {num_tokens} tokens: {lowered}")
        if fitting.is_met_by(layer.module):
            report.kept.append(layer.name)
            continue
        read = read_projections(layer.module, layer.where)
        source = replace(read, num_prefix=layer.num_prefix, is_oblong=is_oblong(model))
        if type(fitting) not in BUILDERS:
            raise InputError(f"convert: {type(fitting).__name__} is no kind of its own: give the spec of one")
        module = BUILDERS[type(fitting)].from_projections(source, fitting)
        module.train(layer.module.training)
        if not any(parameter.requires_grad for parameter in layer.module.parameters()):
            module.requires_grad_(False)  # what is new as well
        swaps[layer.module] = module, source.seat
        old, new = type(layer.module).__name__, type(module).__name__
        carried = source.carried(module.carries)
        change = LayerChange(layer.name, layer.stage, old, new, fitting, num_tokens, *carried, module.new_parts)
        report.replaced.append(change)
    report.notes += _apart_from_now_on([layer for layer, _ in planned if layer.module in swaps])
    if left := no_reader(model):
        report.notes.append(f"other attention stays as it is: {left.removesuffix('; ')}")
    # Nothing is refused from here on. A seat takes parts out of the layer whose place it takes.
    replace_modules(model, {old: module if seat is None else seat(module) for old, (module, seat) in swaps.items()})
    return report


def _plan(
    layers: list[LayerInfo], spec: AttentionSpec, filter_fn: FilterFn | None, rest: AttentionSpec | None
) -> list[tuple[LayerInfo, AttentionSpec]]:
    if filter_fn is not None:
        planned = [(layer, spec if filter_fn(layer.module, layer.name) else rest) for layer in layers]
        return [(layer, wanted) for layer, wanted in planned if wanted is not None]
    return [(layer, MSASpec() if layer.stage == layer.num_stages > 1 else spec) for layer in layers]


def _apart_from_now_on(layers: list[LayerInfo]) -> list[str]:
    """A note on every layer that shared a weight with one before it: its own projections have rows of their own."""
    owners: dict[nn.Parameter, str] = {}
    notes = []
    for layer in layers:
        shared = {owners.setdefault(x, layer.name) for x in layer.module.parameters()} - {layer.name}
        if shared:
            notes.append(f"{layer.name} shared weights with {', '.join(sorted(shared))}: each has its own now")
    return notes


def _lowered(wanted: AttentionSpec, fitting: AttentionSpec) -> str:
    """The settings that were given and had to give way; one that was None is taken from the layer by design."""
    changes = [
        f"{key} lowered from {value} to {vars(fitting)[key]}"
        for key, value in vars(wanted).items()
        if value is not None and vars(fitting)[key] != value
    ]
    return ", ".join(changes)
