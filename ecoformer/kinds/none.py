"""The other control: no attention at all, every token keeps its own value.

Shapes: B batch, H heads, N tokens, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.heads import refuse_mask
from ecoformer.nn.projections import Projections, linear_from
from ecoformer.nn.specs import AttentionSpec, builds, register_spec


@register_spec("none")
@dataclass(frozen=True)
class NoneSpec(AttentionSpec):
    """Every token gets its own value: softmax attention that sees the token alone.

    A control, not a proposal (ours): what a model reaches with it, it reaches without mixing tokens in attention, by
    convolutions and subsampling between the blocks. A plain ViT with it can only mix in its final pooling.
    """


@builds(NoneSpec)
class NoAttention(ReplacementAttention):
    """proj(values), token by token."""

    carries = ("value", "proj")

    def __init__(self, source: Projections, spec: NoneSpec) -> None:
        super().__init__(source.dim, source.num_heads, spec)
        self.to_v = linear_from(source.value)
        self.proj = linear_from(source.proj)
        self.proj_drop = nn.Dropout(source.proj_drop)

    @classmethod
    def from_projections(cls, source: Projections, spec: NoneSpec) -> NoAttention:
        """Values and output projection carry over; queries and keys have no place."""
        return cls(source, spec)

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused."""
        refuse_mask(self, attn_mask, is_causal)
        return self.proj_drop(self.proj(self.to_v(x_BND)))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        batch, num_tokens, _ = x_BND.shape
        own = torch.eye(num_tokens, device=x_BND.device, dtype=x_BND.dtype)
        return own.expand(batch, self.num_heads, num_tokens, num_tokens)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """Nothing lies between the projections."""
        return 0, 0
