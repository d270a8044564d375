"""Plain multi-head self-attention over all tokens: the paper's baseline and EcoFormer's stage 1.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.heads import join_heads, refuse_mask, split_heads
from ecoformer.nn.projections import Projections, linear_from, read_fused_qkv, register_reader
from ecoformer.nn.specs import AttentionSpec, builds, register_spec
from ecoformer.nn.stock import is_plain_attention


@register_spec("msa")
@dataclass(frozen=True)
class MSASpec(AttentionSpec):
    """Plain multi-head softmax attention over all tokens (Vaswani et al., 2017)."""

    def is_met_by(self, module: nn.Module) -> bool:
        return isinstance(module, MultiHeadSelfAttention) or is_plain_attention(module)


@builds(MSASpec)
class MultiHeadSelfAttention(ReplacementAttention):
    """softmax(q k^T / sqrt(C)) v through torch's fused attention.

    Args:
        dim: model channels D; divisible by num_heads.
        num_heads: heads H.
        qkv_bias: bias of the fused query, key, value projection.
        proj_drop: dropout after the output projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__(dim, num_heads, MSASpec())
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    @classmethod
    def from_projections(cls, source: Projections, spec: MSASpec) -> MultiHeadSelfAttention:
        """The same attention as `source`, its query, key and value rows stacked into one projection.

        Raises InputError if the source has no keys of its own.
        """
        if source.key is None:
            raise InputError(
                f"{source.where}: a shared query and key projection holds no keys to build MSA from: start from the "
                "MSA checkpoint"
            )
        module = cls(
            source.dim,
            source.num_heads,
            qkv_bias=source.query.bias is not None,
            proj_bias=source.proj.bias is not None,
            proj_drop=source.proj_drop,
            device="meta",
        )
        module.qkv = linear_from(source.query, source.key, source.value)
        module.proj = linear_from(source.proj)
        return module

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused."""
        refuse_mask(self, attn_mask, is_causal)
        q_BHNC, k_BHNC, v_BHNC = (split_heads(part, self.num_heads) for part in self.qkv(x_BND).chunk(3, dim=-1))
        out_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC)
        return self.proj_drop(self.proj(join_heads(out_BHNC)))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        query_BND, key_BND, _ = self.qkv(x_BND).chunk(3, dim=-1)
        q_BHNC, k_BHNC = split_heads(query_BND, self.num_heads), split_heads(key_BND, self.num_heads)
        return (q_BHNC @ k_BHNC.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core in the paper's accounting."""
        products = 2 * num_tokens**2 * self.dim
        return products + self.num_heads * num_tokens**2, products


@register_reader(MultiHeadSelfAttention)
def _read(module: MultiHeadSelfAttention, where: str) -> Projections:
    return read_fused_qkv(module, module.dim, where)
