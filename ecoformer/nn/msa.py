"""Plain multi-head self-attention over all tokens: the paper's baseline and EcoFormer's stage 1.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import as_attn_mask
from ecoformer.nn.specs import AttentionSpec
from ecoformer.nn.stock import is_plain_attention


@dataclass(frozen=True)
class MSASpec(AttentionSpec):
    """Plain multi-head softmax attention over all tokens (Vaswani et al., 2017)."""

    name = "msa"

    def is_met_by(self, module: nn.Module) -> bool:
        return isinstance(module, MultiHeadSelfAttention) or is_plain_attention(module)


@attention_kind(MSASpec)
class MultiHeadSelfAttention(ReplacementAttention):
    """softmax(q k^T / sqrt(C)) v through torch's fused attention. Arguments as of its base, without a spec."""

    needs_keys = "to build MSA from"
    takes_mask = True

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, **options: Any) -> None:
        super().__init__(dim, num_heads, MSASpec(), qkv_bias, **options)

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC, as_attn_mask(mask_BN))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        q_BHNC, k_BHNC, _ = self.heads(x_BND)
        return (q_BHNC @ k_BHNC.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """2 N^2 D + H N^2 multiplications, 2 N^2 D additions."""
        products = 2 * num_tokens**2 * self.dim
        return products + self.num_heads * num_tokens**2, products
