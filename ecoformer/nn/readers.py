"""Readers of stock attention that is not called as ours is, or has more than four Linears.

Softmax attention over all tokens of its input: what carries over is exact. timm's plainest layers are read in `stock`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.models import davit, eva, fastvit, metaformer, nest, visformer, volo
from torch import Tensor, nn

from ecoformer.nn.projections import (
    FUSED_QKV,
    Projections,
    StockCall,
    linear_of,
    read_fused_qkv,
    read_projections,
    read_separate,
    read_stacked,
    refusal,
    register_reader,
    require_equal_widths,
    trained_as,
)
from ecoformer.nn.seats import (
    OfChannelsFirst,
    OfMap,
    OfMixTransformer,
    OfSegformer,
    OfSets,
    OfTorch,
    Rotary,
    Seat,
    softmax_of,
)
from ecoformer.nn.stock import read_subsampled, refuse_inner_norm_and_gate, turned
from ecoformer.nn.turned import Rotation

SEGFORMER = "transformers.models.segformer.modeling_segformer.SegformerAttention"
MIX_TRANSFORMER = "segmentation_models_pytorch.encoders.mix_transformer.Attention"
CHANNELS_FIRST = StockCall(lambda x_BDYX: x_BDYX.shape[2:].numel())
PAIR = StockCall(is_pair=True)
APART = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}  # as many layers call their Linears


def _read_fused(seat: type[Seat] | None, module: Any, where: str) -> Projections:
    require_equal_widths(where, module.qkv.in_features, module.qkv.out_features // 3, module.proj.out_features)
    return softmax_of(read_fused_qkv(module, module.qkv.in_features, where), seat)


register_reader(davit.WindowAttention)(partial(_read_fused, None))
register_reader(metaformer.Attention)(partial(_read_fused, None))
register_reader(volo.Attention)(partial(_read_fused, OfMap))
register_reader(fastvit.Attention, CHANNELS_FIRST)(partial(_read_fused, OfChannelsFirst))


@register_reader(nest.Attention, StockCall(lambda x_BTND: x_BTND.shape[-2]))
def _read_nest(module: nest.Attention, where: str) -> Projections:
    """NesT joins its heads channel by channel, not head by head, so the columns of its projection change places."""
    source, proj = read_fused_qkv(module, module.qkv.in_features, where), module.proj
    columns = proj.weight.unflatten(1, (-1, module.num_heads)).transpose(1, 2).flatten(1)
    by_heads = trained_as(linear_of(columns, proj.bias), proj)
    return softmax_of(replace(source, proj=by_heads), OfSets)


@register_reader(visformer.Attention, CHANNELS_FIRST)
def _read_visformer(module: visformer.Attention, where: str) -> Projections:
    dim, inner = module.dim, module.head_dim * module.num_heads
    require_equal_widths(where, dim, inner, module.proj.out_channels)
    stacked, proj = (trained_as(linear_of(x.weight.flatten(1), None), x) for x in (module.qkv, module.proj))
    others = {"num_heads": module.num_heads, "proj": proj, "proj_drop": module.proj_drop.p, "parts": FUSED_QKV}
    return softmax_of(read_stacked(stacked, dim, where, **others), OfChannelsFirst)


@register_reader(AttentionRope)
@register_reader(eva.EvaAttention)
def _read_rotary(module: Any, where: str) -> Projections:
    """Queries and keys are turned: by qk-norm, and by what `Rotary` hands on."""
    refuse_inner_norm_and_gate(module, where)
    if getattr(module, "num_kv_groups", 1) > 1:
        raise refusal(where, "grouped queries (fewer keys than queries)", "choose a model with num_kv_heads=num_heads")
    dim = module.proj.out_features
    require_equal_widths(where, dim, module.num_heads * module.head_dim, module.proj.in_features)
    rotation = Rotation(module.num_prefix_tokens, getattr(module, "rotate_half", False))
    source = _rotary_linears(module, dim, where)
    source = turned(source, module.q_norm, module.k_norm, rotation)
    return softmax_of(source, partial(Rotary, rotation=rotation))


def _rotary_linears(module: Any, dim: int, where: str) -> Projections:
    if module.qkv is not None:
        source = read_fused_qkv(module, dim, where)
    else:
        source = read_separate(module, where, module.num_heads, {**APART, "proj": "proj"}, module.proj_drop.p)
    linears: dict[str, Any] = {"query": source.query, "key": source.own_keys("to turn"), "value": source.value}
    biases: dict[str, Tensor | None] = {role: linear.bias for role, linear in linears.items()}
    if getattr(module, "q_bias", None) is not None:  # EVA's, which has none for keys
        biases = {"query": module.q_bias, "key": None, "value": module.v_bias}
    if biases["key"] is None and (query := biases["query"]) is not None:
        biases["key"] = torch.zeros_like(query, requires_grad=query.requires_grad)
    with torch.enable_grad():  # a low-rank layer's weight is a product
        for role, bias in biases.items():
            if bias is not linears[role].bias:
                linears[role] = linear_of(linears[role].weight, bias)
    return replace(source, **linears)


@register_reader(nn.MultiheadAttention, PAIR)
def _read_torch(module: nn.MultiheadAttention, where: str) -> Projections:
    if not module.batch_first or module.in_proj_weight is None:
        raise refusal(where, "batch_first=False, or keys of other widths", "use batch_first=True and one width")
    if module.dropout > 0:
        raise refusal(
            where, f"dropout={module.dropout} of attention weights", "create the model with attention_dropout=0"
        )
    if module.bias_k is not None or module.add_zero_attn:
        raise refusal(where, "bias_k, bias_v or add_zero_attn", "choose a model without them")
    stacked = linear_of(module.in_proj_weight, module.in_proj_bias)
    parts = {"query": "in_proj", "key": "in_proj", "value": "in_proj", "proj": "out_proj"}
    others = {"num_heads": module.num_heads, "proj": module.out_proj, "proj_drop": 0.0, "parts": parts}
    return softmax_of(read_stacked(stacked, module.embed_dim, where, **others), OfTorch)


class SegformerTeacher(nn.Module):
    """SegFormer's attention, called and with parts named as timm's subsampled attention: what fits learn from."""

    def __init__(self, stock: nn.Module, **parts: nn.Module) -> None:
        super().__init__()
        self.stock = stock
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x_BND: Tensor, feat_size: tuple[int, int]) -> Tensor:
        out = self.stock(x_BND, *feat_size)
        return out[0] if isinstance(out, tuple) else out


@register_reader(SegformerTeacher)
def _read_segformer_teacher(module: Any, where: str) -> Projections:
    """Of the layer that it stands for, whose seat is taken."""
    return replace(read_projections(module.stock, where), seat=None, layer=module)


@register_reader(SEGFORMER, PAIR)
def _read_segformer(module: Any, where: str) -> Projections:
    if module.attention_dropout > 0:
        remedy = "load the model with attention_probs_dropout_prob=0 (an argument of from_pretrained)"
        raise refusal(where, f"attention_probs_dropout_prob={module.attention_dropout}", remedy)
    source = read_separate(module, where, module.num_attention_heads, {**APART, "proj": "o_proj"})
    if module.sequence_reduction_ratio == 1:
        return softmax_of(source, OfSegformer)
    teacher = SegformerTeacher(module, q=module.q_proj, proj=module.o_proj)
    return replace(source, seat=OfSegformer, dropped=("sequence_reduction",), layer=teacher)


@register_reader(MIX_TRANSFORMER)
def _read_mix_transformer(module: Any, where: str) -> Projections:
    source = replace(read_subsampled(module, where), dropped=(), seat=OfMixTransformer)
    if module.sr_ratio == 1:
        return softmax_of(source, OfMixTransformer)
    teacher = SegformerTeacher(module, q=module.q, proj=module.proj, sr=module.sr, norm=module.norm)
    return replace(source, dropped=("sr", "norm"), layer=teacher)
