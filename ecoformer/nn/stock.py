"""timm's own attention layers as sources of conversion: PVTv2, Twins, and ViT/DeiT."""

from timm.layers.attention import Attention as VitAttention
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.twins import GlobalSubSampleAttn, LocallyGroupedAttn
from torch import nn

from ecoformer.nn.projections import Projections, linear_rows, read_fused_qkv, refusal, register_reader


def is_plain_attention(module: nn.Module) -> bool:
    """Whether a stock layer is softmax attention over all tokens already (timm's Twins spell it differently)."""
    if isinstance(module, PvtAttention):
        return module.sr is None and module.pool is None
    return isinstance(module, VitAttention)


@register_reader(GlobalSubSampleAttn)
@register_reader(PvtAttention)
def _read_subsampled(module: PvtAttention | GlobalSubSampleAttn, where: str) -> Projections:
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
    for part in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(module, part), nn.Identity):
            raise refusal(where, f"{part} (a norm inside attention)", "choose a model without it")
    if module.gate is not None:
        raise refusal(where, "gated attention", "choose a model without it")
    dim = module.qkv.in_features
    widths = (dim, module.attn_dim, module.proj.out_features)
    if len(set(widths)) > 1:
        raise refusal(where, f"widths {widths} of input, heads and output", "choose a model with equal widths")
    return read_fused_qkv(module, dim, where)
