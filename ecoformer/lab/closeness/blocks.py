"""What a replacement of softmax attention is worth, block by block, on the features of the MSA model.

Both layers get the same input, so an error of one block does not hide in the next. Shapes: B batch, H heads, N tokens,
C head channels, D model channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.model.layers import attention_layers
from ecoformer.nn.base import ReplacementAttention, before_projection
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.nn.projections import read_projections
from ecoformer.ops.closeness import relative_error, row_correlation, strongest_key_recall


@dataclass(frozen=True)
class BlockQuality:
    """One replaced layer against the softmax attention it stands for; ready for JSON through dataclasses.asdict.

    Errors are relative L2 of the attention output before the output projection, over all images: `error` of the
    layer, `error_uniform` of the mean of all values (the floor to beat), `error_shared_qk` of exact softmax attention
    that takes the queries for keys, which is what a shared projection can hope for at best. `recall` is the share of
    the `num_keys` strongest keys found, `recall_chance` what any constant weights find. `correlation` is that of
    the weights of a token's keys. Recall and correlation are None where the layer shows no weights.
    """

    block: str
    num_tokens: int
    error: float
    error_uniform: float
    error_shared_qk: float
    num_keys: int
    recall: float | None
    recall_chance: float
    correlation: float | None


@torch.no_grad()
def quality(
    msa: nn.Module, replaced: nn.Module, images: Tensor, *, map_images: int = 4, num_keys: int = 8
) -> list[BlockQuality]:
    """Compare every attention layer of `replaced` with the layer of `msa` of the same name, in forward order.

    Args:
        msa: the model before conversion, with plain softmax attention.
        replaced: the same model converted, its hash functions fitted. Both modes are restored.
        images: (B, 3, S, S), normalised, best not the ones the hash functions were fitted on.
        map_images: how many of them the recall and the correlation, which need N x N weights, are measured on.
        num_keys: strongest keys per token; lowered to N / 2 in blocks of fewer tokens.
    Returns:
        One row for each layer that is not softmax attention in `replaced`.
    Raises:
        InputError: no layer of `replaced` differs, a layer is missing in `msa`, or one of `msa` is not softmax
            attention.
    """
    originals = {layer.name: layer for layer in attention_layers(msa)}
    rows: dict[str, BlockQuality] = {}
    pairs = {}
    for layer in attention_layers(replaced):
        original = originals.get(layer.name)
        if original is None:
            raise InputError(f"{layer.where} has no counterpart in the MSA model: convert a copy of that model")
        if type(layer.module) is not type(original.module):
            pairs[layer.name] = (original, layer.module)
    if not pairs:
        raise InputError("no attention layer differs from the MSA model: convert a copy of it first")

    def compare(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            rows[name] = _compare(name, pairs[name][0].where, module, pairs[name][1], args[0], map_images, num_keys)

        return hook

    hooks = [original.module.register_forward_pre_hook(compare(name)) for name, (original, _) in pairs.items()]
    modes = [(module, module.training) for model in (msa, replaced) for module in model.modules()]
    try:
        replaced.eval()
        msa.eval()(images)
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in modes:
            module.training = training
    return list(rows.values())


def _compare(
    name: str, where: str, msa: nn.Module, replaced: nn.Module, x_BND: Tensor, map_images: int, num_keys: int
) -> BlockQuality:
    source = read_projections(msa, where)
    if source.key is None or source.dropped:
        raise InputError(f"{where} of the MSA model is no plain softmax attention: start from an attention=msa run")
    assert source.key is not None
    q_BHNC, k_BHNC, v_BHNC = (
        split_heads(linear(x_BND), source.num_heads) for linear in (source.query, source.key, source.value)
    )
    target_BND = join_heads(F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC))
    shared_BND = join_heads(F.scaled_dot_product_attention(q_BHNC, q_BHNC, v_BHNC))
    uniform_BND = join_heads(v_BHNC.mean(dim=2, keepdim=True)).expand_as(target_BND)
    num_tokens = x_BND.shape[1]
    keys = max(1, min(num_keys, num_tokens // 2))
    few = slice(0, map_images)
    recall = correlation = None
    if isinstance(replaced, ReplacementAttention):
        output_BND = replaced.attention_output(x_BND)
        scores_BHNN = q_BHNC[few] @ k_BHNC[few].transpose(-2, -1) * q_BHNC.shape[-1] ** -0.5
        softmax_BHNN = scores_BHNN.softmax(dim=-1)
        if replaced.shows_weights:
            weights_BHNN = replaced.attention_weights(x_BND[few])
            recall = strongest_key_recall(weights_BHNN, softmax_BHNN, keys)
            correlation = row_correlation(weights_BHNN, softmax_BHNN)
    else:
        output_BND = before_projection(replaced, x_BND)
    return BlockQuality(
        block=name,
        num_tokens=num_tokens,
        error=relative_error(output_BND, target_BND),
        error_uniform=relative_error(uniform_BND, target_BND),
        error_shared_qk=relative_error(shared_BND, target_BND),
        num_keys=keys,
        recall=recall,
        recall_chance=keys / num_tokens,
        correlation=correlation,
    )


@contextmanager
def uniform_attention(model: nn.Module, names: set[str]) -> Iterator[None]:
    """The control: while it lasts, the named layers of `model` give every token the mean of all values."""

    def flatten(name: str, where: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            source = read_projections(module, where)
            mean_B1D = source.value(args[0]).mean(dim=1, keepdim=True)
            flat: Tensor = source.proj(mean_B1D).expand_as(out)
            return flat

        return hook

    layers = [layer for layer in attention_layers(model) if layer.name in names]
    assert len(layers) == len(names), "a control for layers that the model does not have"
    hooks = [layer.module.register_forward_hook(flatten(layer.name, layer.where)) for layer in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
