"""The control that any accuracy claim needs: attention that looks at everything and chooses nothing.

Shapes: B batch, H heads, N tokens, D model channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import token_mean
from ecoformer.nn.specs import AttentionSpec


@dataclass(frozen=True)
class UniformSpec(AttentionSpec):
    """Every token gets the mean of all values: softmax attention whose scores are all equal.

    A control, not a proposal (ours; the pooling mixer of Yu et al., "MetaFormer Is Actually What You Need for Vision",
    CVPR 2022, is its local cousin). What a model reaches with it owes nothing to where attention looks.
    """

    name = "uniform"


@attention_kind(UniformSpec)
class UniformAttention(ReplacementAttention):
    """proj(mean over tokens of the values); class and other prefix tokens count like the rest."""

    parts: Mapping[str, str] = {"value": "to_v", "proj": "proj"}

    takes_mask = True

    def attend(self, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return token_mean(v_BHNC, mask_BN).expand_as(v_BHNC)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        batch, num_tokens, _ = x_BND.shape
        return x_BND.new_full((batch, self.num_heads, num_tokens, num_tokens), 1 / num_tokens)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """D divisions as multiplications, N D additions: one mean over all tokens."""
        return self.dim, num_tokens * self.dim
