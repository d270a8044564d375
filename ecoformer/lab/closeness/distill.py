"""Convert a copy of a trained model and fit it to the original, layer after layer; and say how close it came."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.hashes import HashFitReport, fit_hashes
from ecoformer.fit.joint import JointFitReport
from ecoformer.fit.taught import TaughtAttention, TaughtSpec
from ecoformer.kinds import BUILDERS
from ecoformer.model.convert import FilterFn, convert
from ecoformer.nn.base import before_projection
from ecoformer.nn.projections import read_projections
from ecoformer.ops.closeness import relative_error


@dataclass(frozen=True)
class Distilled:
    """A converted and fitted copy of a model, and what the fits report of the images that they were made on."""

    model: nn.Module
    reports: list[HashFitReport]
    joint: JointFitReport | None = None


@dataclass(frozen=True)
class BlockError:
    """How far one fitted layer is from the layer that it replaced, on images of which it has seen none.

    Relative L2 of the attention output before the output projection, both layers at the features that the converted
    model has there: of the layer, of uniform attention over the replaced layer's own keys, and of random codes.
    """

    block: str
    num_tokens: int
    error: float
    error_uniform: float
    error_random: float


def distill(
    source: nn.Module,
    spec: TaughtSpec,
    images: Tensor,
    *,
    seed: int,
    filter_fn: FilterFn | None = None,
    on_report: Callable[[HashFitReport], None] | None = None,
    on_joint_step: Callable[[int, int], None] | None = None,
) -> Distilled:
    """A copy of `source` with the attention of `spec`, fitted to that of `source`. Which layers: see `convert`.

    Args:
        source: a timm model as it is, or one converted to MSA.
        images: (B, 3, S, S), normalised, of the training split.
        seed: of the random start and of the order of images.
    """
    model = copy.deepcopy(source)
    convert(model, spec, filter_fn, img_size=images.shape[-1])
    joint: list[JointFitReport] = []
    reports = fit_hashes(model, images, seed, on_report, on_joint=joint.append, on_joint_step=on_joint_step)
    return Distilled(model, reports, joint[0] if joint else None)


@torch.no_grad()
def block_errors(source: nn.Module, model: nn.Module, images: Tensor, *, seed: int) -> list[BlockError]:
    """The error of every fitted layer of `model` against the layer of `source` of the same name, in forward order.

    Args:
        images: best not those of the fit.
        seed: of the random codes.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TaughtAttention)}
    if not layers:
        raise InputError("the model has no layer that was fitted to another: distill one first")
    calls: dict[str, tuple[Any, ...]] = {}

    def note(name: str) -> Any:
        return lambda module, args: calls.update({name: args})

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    modes = [(module, module.training) for root in (source, model) for module in root.modules()]
    try:
        source.eval()
        model.eval()(images)
        for handle in hooks:  # from here on layers are run apart
            handle.remove()
        return [_error(name, source.get_submodule(name), layers[name], args, seed) for name, args in calls.items()]
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in modes:
            module.training = training


def _error(name: str, original: nn.Module, layer: TaughtAttention, args: tuple[Any, ...], seed: int) -> BlockError:
    floors = _random(original, name, layer.spec).fit_on_call(args, torch.Generator().manual_seed(seed))
    assert floors.uniform_error is not None and floors.random_error is not None
    return BlockError(
        block=name,
        num_tokens=args[0].shape[1],
        error=relative_error(layer.attention_output(args[0]), before_projection(original, *args)),
        error_uniform=floors.uniform_error,
        error_random=floors.random_error,
    )


def _random(original: nn.Module, name: str, spec: TaughtSpec) -> TaughtAttention:
    """A layer of the same kind before its fit."""
    layer = BUILDERS[type(spec)].from_projections(read_projections(original, name), replace(spec, fit_steps=0))
    assert isinstance(layer, TaughtAttention)
    return layer.eval()
