"""Softmax attention whose keys are its queries: what sharing one projection costs before any hashing.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.heads import join_heads, refuse_mask, split_heads
from ecoformer.nn.projections import Projections, linear_from, register_reader
from ecoformer.nn.specs import AttentionSpec, builds, register_spec


@register_spec("msa_shared_qk")
@dataclass(frozen=True)
class SharedQKSpec(AttentionSpec):
    """softmax(q q^T / sqrt(C)) v: plain attention with one projection for queries and keys.

    The control for EcoFormer's shared projection (Liu et al., EcoFormer, NeurIPS 2022). Shared queries and
    keys are known from Kitaev et al., "Reformer: The Efficient Transformer", ICLR 2020, which also normalises the keys
    and masks the token itself; here neither is done, so only the projection differs from MSA.
    """


@builds(SharedQKSpec)
class SharedQKAttention(ReplacementAttention):
    """MSA with the key rows made equal to the query rows; its projections are named as EcoFormer's."""

    carries = ("query", "value", "proj")

    def __init__(self, source: Projections, spec: SharedQKSpec) -> None:
        super().__init__(source.dim, source.num_heads, spec)
        self.to_qk = linear_from(source.query)
        self.to_v = linear_from(source.value)
        self.proj = linear_from(source.proj)
        self.proj_drop = nn.Dropout(source.proj_drop)

    @classmethod
    def from_projections(cls, source: Projections, spec: SharedQKSpec) -> SharedQKAttention:
        """Query rows become the shared projection, key rows are dropped, as for EcoFormer."""
        return cls(source, spec)

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused."""
        refuse_mask(self, attn_mask, is_causal)
        qk_BHNC, v_BHNC = (split_heads(part, self.num_heads) for part in (self.to_qk(x_BND), self.to_v(x_BND)))
        out_BHNC = F.scaled_dot_product_attention(qk_BHNC, qk_BHNC, v_BHNC)
        return self.proj_drop(self.proj(join_heads(out_BHNC)))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        qk_BHNC = split_heads(self.to_qk(x_BND), self.num_heads)
        return (qk_BHNC @ qk_BHNC.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """That of MSA: 2 N^2 D + H N^2 multiplications, 2 N^2 D additions; the saving is a projection, a Linear."""
        products = 2 * num_tokens**2 * self.dim
        return products + self.num_heads * num_tokens**2, products


@register_reader(SharedQKAttention)
def _read(module: SharedQKAttention, where: str) -> Projections:
    return Projections(
        where=where,
        dim=module.dim,
        num_heads=module.num_heads,
        query=module.to_qk,
        key=None,
        value=module.to_v,
        proj=module.proj,
        proj_drop=module.proj_drop.p,
        parts={"query": "to_qk", "value": "to_v", "proj": "proj"},
    )
