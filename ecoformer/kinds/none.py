"""The other control: no attention at all, every token keeps its own value.

Shapes: B batch, H heads, N tokens, D model channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.specs import AttentionSpec


@dataclass(frozen=True)
class NoneSpec(AttentionSpec):
    """Every token gets its own value: softmax attention that sees the token alone.

    A control, not a proposal (ours): what a model reaches with it, it reaches without mixing tokens in attention, by
    convolutions and subsampling between the blocks. A plain ViT with it can only mix in its final pooling.
    """

    name = "none"


@attention_kind(NoneSpec)
class NoAttention(ReplacementAttention):
    """proj(values), token by token: a mask changes nothing."""

    parts: Mapping[str, str] = {"value": "to_v", "proj": "proj"}

    takes_mask = True

    def attend(self, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return v_BHNC

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        batch, num_tokens, _ = x_BND.shape
        own = torch.eye(num_tokens, device=x_BND.device, dtype=x_BND.dtype)
        return own.expand(batch, self.num_heads, num_tokens, num_tokens)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """Nothing lies between the projections."""
        return 0, 0
