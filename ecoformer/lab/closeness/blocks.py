"""How close the layers of a converted model come to those that they replaced, block by block.

Both layers of a pair get the same input, so an error of one block does not hide in the next.
Shapes: B batch, N tokens, S pixels.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.compare import compare, eval_mode, layer_calls, strongest_keys
from ecoformer.fit.target import SoftmaxTarget
from ecoformer.fit.taught import TaughtAttention
from ecoformer.kinds import BUILDERS
from ecoformer.lab.closeness.controls import random_hash
from ecoformer.model.layers import attention_layers
from ecoformer.nn.projections import read_projections

Row = dict[str, Any]


@torch.no_grad()
def quality(msa: nn.Module, replaced: nn.Module, images: Tensor, *, map_images: int = 4) -> list[Row]:
    """Every attention layer of `replaced` against that of `msa` of the same name, at the features of `msa`, in order.

    Args:
        msa: the model before conversion, with plain softmax attention.
        replaced: the same model converted, its hash functions fitted. Both modes are restored.
        images: (B, 3, S, S), normalised, best not the ones the hash functions were fitted on.
        map_images: how many of them the recall and the correlation, which need N x N weights, are measured on.
    Returns:
        One row for each layer that is not softmax attention in `replaced`, JSON-ready. Errors are relative L2 of the
        attention output before the output projection, over all images: `error` of the layer, `error_uniform` of
        uniform attention over the replaced layer's keys, `error_shared_qk` of exact softmax attention that takes the
        queries for keys, which is what a shared projection can hope for at best. `recall` is the share of the
        `num_keys` strongest keys found, `recall_chance` what any constant weights find, `correlation` that of the
        weights of a token's keys; None where there are no weights to show.
    Raises:
        InputError: no layer of `replaced` differs, a layer is missing in `msa`, or one of `msa` is not softmax
            attention.
    """
    originals = {layer.name: layer for layer in attention_layers(msa)}
    pairs = {}
    for layer in attention_layers(replaced):
        original = originals.get(layer.name)
        if original is None:
            raise InputError(f"{layer.where} has no counterpart in the MSA model: convert a copy of that model")
        if type(layer.module) is not type(original.module):
            pairs[layer.name] = (original, layer.module)
    if not pairs:
        raise InputError("no attention layer differs from the MSA model: convert a copy of it first")
    rows = []
    with eval_mode(msa, replaced):
        calls = layer_calls(msa, {name: original.module for name, (original, _) in pairs.items()}, images)
        for name, (x_BND, others) in calls.items():
            original, module = pairs[name]
            mask_BN = others.get("mask_BN")
            softmax = SoftmaxTarget.of(original.module, original.where, x_BND, mask_BN)
            target = softmax.known()
            found = compare(module, target, x_BND, mask_BN=mask_BN, map_images=map_images)
            shared = replace(softmax, k_BHNC=softmax.q_BHNC)
            same = compare(lambda x, shared=shared: shared.output(), target, x_BND, mask_BN=mask_BN)
            rows.append(
                {
                    **_row(name, x_BND, found.attention_error, found.uniform_error),
                    "error_shared_qk": same.attention_error,
                    "num_keys": strongest_keys(x_BND.shape[1]),
                    "recall": found.recall,
                    "recall_chance": found.chance_recall,
                    "correlation": found.correlation,
                }
            )
    return rows


@torch.no_grad()
def block_errors(source: nn.Module, model: nn.Module, images: Tensor, *, seed: int) -> list[Row]:
    """Every fitted layer of `model` against that of `source` of the same name, at the features of `model`, in order.

    Args:
        images: best not those of the fit.
        seed: of the random codes.
    Returns:
        Rows as `quality` gives them, of `error`, `error_uniform`, and `error_random` of random codes.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TaughtAttention)}
    if not layers:
        raise InputError("the model has no layer that was fitted to another: distill one first")
    rows = []
    with eval_mode(source, model):
        for name, (x_BND, others) in layer_calls(model, layers, images).items():
            spec = random_hash(layers[name].spec)
            random = BUILDERS[type(spec)].from_projections(read_projections(source.get_submodule(name), name), spec)
            assert isinstance(random, TaughtAttention)
            target = random.target(x_BND, **others)  # which the fit, of no steps, will forget
            assert target is not None
            floors = random.eval().fit_on_call(x_BND, torch.Generator().manual_seed(seed), **others)
            error = compare(layers[name], target, x_BND, mask_BN=others.get("mask_BN")).attention_error
            rows.append({**_row(name, x_BND, error, floors.uniform_error), "error_random": floors.random_error})
    return rows


def _row(block: str, x_BND: Tensor, error: float | None, uniform: float | None) -> Row:
    return {"block": block, "num_tokens": x_BND.shape[1], "error": error, "error_uniform": uniform}
