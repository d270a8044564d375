"""Fitting the hash functions of all of a model's layers in one forward pass, and what that was worth.

On images that it did not see, beside a random hash and uniform attention.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits.
"""

import copy
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance

from ecoformer.errors import InputError, require
from ecoformer.fit.compare import compare, eval_mode
from ecoformer.fit.contract import (
    FittableAttention,
    HashFitReport,
    JointFitReport,
    NoFiniteImages,
    code_figures,
    has_hashes,
    hash_layers,
    nothing_fitted,
)
from ecoformer.fit.joint import fit_jointly, original_of, require_class_scores
from ecoformer.nn.base import called_with, given
from ecoformer.nn.inputs import not_accepted
from ecoformer.ops.precision import without_autocast

__all__ = ["HashFitReport", "fit_hashes", "fit_new_hashes", "has_hashes", "hash_layers"]

MAP_IMAGES = 2  # recall and correlation need N x N weights, so they look at few images,
MAP_ENTRIES = 2**25  # and at none whose H maps have more entries


def layers_to_fit(model: nn.Module) -> dict[str, FittableAttention]:
    """The hash layers; those that are fitted once, and were, are passed over while there are others that never were."""
    layers = hash_layers(model)
    if all(layer.is_fitted for layer in layers.values()):
        return layers
    return {name: layer for name, layer in layers.items() if not (layer.is_fitted and layer.refit_refusal())}


def fit_new_hashes(model: nn.Module, images: Tensor, seed: int) -> None:
    """`fit_hashes` where a layer was never fitted; a model that comes from a checkpoint keeps its functions."""
    if not all(layer.is_fitted for layer in hash_layers(model).values()):
        fit_hashes(model, images, seed)


@torch.no_grad()
def fit_hashes(
    model: nn.Module,
    images: Tensor,
    seed: int,
    on_report: Callable[[HashFitReport], None] | None = None,
    held_out: Tensor | None = None,
    on_joint: Callable[[JointFitReport], None] | None = None,
    on_joint_step: Callable[[int, int], None] | None = None,
) -> list[HashFitReport]:
    """Fit the hash layers (`layers_to_fit`) in one forward pass, each on the features that those before it now produce.

    Fit before a copy is made for an average of weights (ModelEmaV3, AveragedModel): of hash functions there is none.

    A layer that has fitted functions keeps them where no image gives finite features, and reports all bits as failed.
    Where the layers ask for it (`joint_steps`), all of them are then fitted together (`fit.joint`).

    Args:
        model: its mode is restored; the pass runs in eval mode, without autocast and not compiled.
        images: (B, 3, S, S), normalised, or token ids (B, N), on the model's device. A joint fit takes them all, layers
            at most their `most_images`. Tokens that the model masks take no part.
        seed: of the anchor draw.
        on_report: called with each layer's report as soon as it is fitted.
        held_out: further images to measure the fitted functions on, and a joint fit.
        on_joint, on_joint_step: called with the report of a joint fit, and after each of its steps.
    Returns:
        One report a layer, in the order of the forward pass; empty if there is nothing to fit.
    Raises:
        InputError: no module, no batch of images, or one that the model does not accept; a layer cannot be fitted
            again, or not on these images, or runs never or twice in a forward pass; a joint fit finds no class scores.
    """
    require(model, nn.Module, "Module: give a converted model", "fit_hashes: ")
    _require_batches(images, held_out)
    if name := next((name for name, x in model.named_parameters() if x.is_meta), None):
        raise InputError(f"fit_hashes: {name} is on meta, without values: load weights first, and convert then")
    layers = layers_to_fit(model)
    if not layers:
        return []
    if torch.is_inference_mode_enabled():
        raise InputError("fit_hashes: inference mode allows no gradients, which fits follow: call it outside of it")
    for name, layer in layers.items():
        if layer.refit_refusal():
            raise InputError(f"{name}: {layer.refit_refusal()}")
    require(seed, Integral, "whole number: give one", "fit_hashes: seed=")
    generator = torch.Generator().manual_seed(int(seed) % 2**64)
    original = original_of(model)  # before the layers forget what they were
    reports: list[HashFitReport] = []
    few = images[: min(layer.most_images or len(images) for layer in layers.values())]
    num_images, all_images = len(few), few if held_out is None else torch.cat([few, held_out])
    busy = False

    def fit_before_forward(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal busy
        if busy:  # a measurement runs the layer, or a copy of it
            return
        assert isinstance(module, FittableAttention)
        if any(report.block == name for report in reports):
            raise InputError(
                f"{name} runs twice in one forward pass, and can be fitted to one place alone: give every block a "
                "layer of its own before you convert the model, or fit a part that runs once (siamese: its backbone)"
            )
        busy = True
        x_BND, others = called_with(args, kwargs)
        report = fit_and_measure(module, x_BND, num_images, generator, **others)
        reports.append(replace(report, block=name))
        busy = False
        if on_report is not None:
            on_report(reports[-1])

    # Eagerly: a graph holds no fit, which is within the forward pass.
    with eval_mode(model), without_autocast(images), set_stance("force_eager"), ExitStack() as hooks:
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(fit_before_forward, name), with_kwargs=True))
        try:
            if original is not None:
                require_class_scores(original, images[:1])
            model(all_images)
        except Exception as error:
            if busy or isinstance(error, InputError):
                raise
            remedy = "; give images (B, C, H, W), normalised, in its precision and on its device, or token ids (B, N)"
            raise not_accepted(model, all_images, error, remedy) from error
    if missed := layers.keys() - {report.block for report in reports}:
        raise InputError(f"{min(missed)} did not run in a forward pass: convert the model without it")
    if original is not None:
        with eval_mode(model), without_autocast(images), set_stance("force_eager"):
            joint = fit_jointly(model, original, images, generator, held_out, on_joint_step)
        if on_joint is not None:
            on_joint(joint)
    return reports


def _require_batches(images: Tensor, held_out: Tensor | None) -> None:
    for name, batch in (("images", images), ("held_out", images if held_out is None else held_out)):
        found = "tensor: give a batch as one, as next(iter(loader))[0] or torch.from_numpy(array)"
        found += ", for a model of other inputs a module around it that makes them" if isinstance(batch, dict) else ""
        require(batch, Tensor, found, f"fit_hashes: {name}=")
        if not len(images) or images.is_meta or (batch.shape[1:], batch.dtype) != (images.shape[1:], images.dtype):
            found = f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)} on {batch.device}"
            raise InputError(f"fit_hashes: {name} is {found}: give an image or more, not on meta, held_out ones alike")


def fit_and_measure(
    layer: FittableAttention,
    x_BND: Tensor,
    num_images: int,
    generator: torch.Generator,
    feat_size: Any = None,
    mask_BN: Tensor | None = None,
) -> HashFitReport:
    """Fit a layer to the first images of `x_BND` and measure it on the others, if there are any.

    The report says how long the fit took, without the measuring. `feat_size` and `mask_BN` are what else the layer is
    called with. A layer that has fitted functions keeps them where no image gives finite features. Raises
    NoFiniteImages where it has none.
    """
    x_BND, held_out_BND = x_BND[:num_images], x_BND[num_images:]
    finite_B = held_out_BND.isfinite().flatten(1).all(dim=1)
    held_out_BND = held_out_BND[finite_B]
    fit_mask, held_mask = (None, None) if mask_BN is None else (mask_BN[:num_images], mask_BN[num_images:][finite_B])
    size, mask = given(feat_size=feat_size), given(mask_BN=held_mask)
    random, target, old_codes_BHNK = None, None, None
    if len(held_out_BND):  # what the fit changes or forgets
        random = _with_random_hash(layer, x_BND, generator, fit_mask)
        target = None if random is None else layer.target(held_out_BND, **size, **mask)
        shown = layer if layer.shows_codes and layer.is_fitted else random
        old_codes_BHNK = None if shown is None else shown.signed_codes(held_out_BND, **mask)
    started = time.perf_counter()
    try:
        report = layer.fit_on_call(x_BND, generator, **size, **given(mask_BN=fit_mask))
    except NoFiniteImages:
        if not layer.is_fitted:
            raise
        return nothing_fitted(layer, len(x_BND))
    found: dict[str, Any] = {"seconds": time.perf_counter() - started, "held_out_images": len(held_out_BND)}
    if old_codes_BHNK is not None:
        found |= code_figures(old_codes_BHNK, layer.signed_codes(held_out_BND, **mask), held_mask)
    if target is not None:
        limits: dict[str, Any] = {"map_images": MAP_IMAGES, "map_entries": MAP_ENTRIES}
        found |= asdict(compare(layer, target, held_out_BND, random=random, **limits, **mask))
    return replace(report, **found)


def _with_random_hash(
    layer: FittableAttention, fit_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None
) -> FittableAttention | None:
    """A copy with random hash functions that shares what a fit leaves alone; None for kinds without codes to show.

    `generator` is not advanced.
    """
    if not layer.shows_codes:
        return None
    shared = {} if layer.fits_parameters else {id(parameter): parameter for parameter in layer.parameters()}
    twin = copy.deepcopy(layer, shared)
    try:
        twin.draw_random_hash(fit_BND, generator.clone_state(), **given(mask_BN=mask_BN))
    except NoFiniteImages:  # the fit will say so
        return None
    return twin
