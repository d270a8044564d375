"""The control that any accuracy claim needs: attention that looks at everything and chooses nothing.

Shapes: B batch, H heads, N tokens, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.heads import refuse_mask
from ecoformer.nn.projections import Projections, linear_from
from ecoformer.nn.specs import AttentionSpec, builds, register_spec


@register_spec("uniform")
@dataclass(frozen=True)
class UniformSpec(AttentionSpec):
    """Every token gets the mean of all values: softmax attention whose scores are all equal.

    A control, not a proposal (ours; the pooling mixer of Yu et al., "MetaFormer Is Actually What You Need for Vision",
    CVPR 2022, is its local cousin). What a model reaches with it owes nothing to where attention looks.
    """


@builds(UniformSpec)
class UniformAttention(ReplacementAttention):
    """proj(mean over tokens of the values); class and other prefix tokens count like the rest."""

    carries = ("value", "proj")

    def __init__(self, source: Projections, spec: UniformSpec) -> None:
        super().__init__(source.dim, source.num_heads, spec)
        self.to_v = linear_from(source.value)
        self.proj = linear_from(source.proj)
        self.proj_drop = nn.Dropout(source.proj_drop)

    @classmethod
    def from_projections(cls, source: Projections, spec: UniformSpec) -> UniformAttention:
        """Values and output projection carry over; queries and keys have no place."""
        return cls(source, spec)

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused."""
        refuse_mask(self, attn_mask, is_causal)
        mean_B1D = self.to_v(x_BND).mean(dim=1, keepdim=True)
        return self.proj_drop(self.proj(mean_B1D.expand_as(x_BND)))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        batch, num_tokens, _ = x_BND.shape
        return x_BND.new_full((batch, self.num_heads, num_tokens, num_tokens), 1 / num_tokens)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """D divisions as multiplications, N D additions: one mean over all tokens."""
        return self.dim, num_tokens * self.dim
