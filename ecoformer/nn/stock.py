"""timm's own attention layers as sources of conversion: PVTv2, Twins, and ViT/DeiT."""

from dataclasses import replace
from typing import Any

from timm.layers.attention import Attention as VitAttention
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

from ecoformer.nn.projections import (
    Projections,
    linear_from,
    linear_rows,
    read_fused_qkv,
    refusal,
    register_reader,
    require_equal_widths,
)
from ecoformer.nn.turned import Rotation, Turn, TurnedLinear


def is_plain_attention(module: nn.Module) -> bool:
    """Whether a stock layer is softmax attention over all tokens already (timm's Twins spell it differently)."""
    if isinstance(module, PvtAttention):
        return module.sr is None and module.pool is None
    return isinstance(module, VitAttention)


@register_reader(GlobalSubSampleAttn)
@register_reader(PvtAttention)
def read_subsampled(module: Any, where: str) -> Projections:
    """Spatial reduction attention (Wang et al., 2021): `q`, a `kv` over a reduced map, `proj`."""
    dim = module.dim
    return Projections(
        where=where,
        dim=dim,
        num_heads=module.num_heads,
        query=module.q,
        key=linear_rows(module.kv, 0, dim),
        value=linear_rows(module.kv, dim, 2 * dim),
        proj=module.proj,
        proj_drop=module.proj_drop.p,
        parts={"query": "q", "key": "kv", "value": "kv", "proj": "proj"},
        dropped=() if module.sr is None else ("sr", "norm"),
    )


@register_reader(LocallyGroupedAttn)
def _read_local(module: LocallyGroupedAttn, where: str) -> Projections:
    return read_fused_qkv(module, module.dim, where)


@register_reader(VitAttention)
def _read_vit(module: VitAttention, where: str) -> Projections:
    refuse_inner_norm_and_gate(module, where)
    dim = module.qkv.in_features
    require_equal_widths(where, dim, module.attn_dim, module.proj.out_features)
    return turned(read_fused_qkv(module, dim, where), module.q_norm, module.k_norm)


def refuse_inner_norm_and_gate(module: Any, where: str) -> None:
    """Raise InputError for a norm or a gate between heads and output projection, as timm's layers may have."""
    if not isinstance(module.norm, nn.Identity):
        raise refusal(where, "norm (a norm inside attention)", "choose a model without it")
    if module.gate is not None:
        raise refusal(where, "gated attention", "choose a model without it")


def turned(source: Projections, q_norm: nn.Module, k_norm: nn.Module, rotation: Rotation | None = None) -> Projections:
    """The source with a norm per head after its queries, one after its keys, and the rotation after both."""
    if rotation is None and isinstance(q_norm, nn.Identity) and isinstance(k_norm, nn.Identity):
        return source
    query, key = (
        TurnedLinear(linear_from(linear), [Turn(norm, source.num_heads, rotation)])
        for linear, norm in ((source.query, q_norm), (source.own_keys("to turn"), k_norm))
    )
    return replace(source, query=query, key=key)
