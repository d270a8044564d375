"""Plain multi-head self-attention over all tokens: the paper's baseline and EcoFormer's stage 1.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.nn.projections import Projections, linear_from, register_reader
from ecoformer.nn.qkv import QKVAttention, read_qkv
from ecoformer.nn.specs import AttentionSpec, builds, register_spec
from ecoformer.nn.stock import is_plain_attention


@register_spec("msa")
@dataclass(frozen=True)
class MSASpec(AttentionSpec):
    """Plain multi-head softmax attention over all tokens (Vaswani et al., 2017)."""

    def is_met_by(self, module: nn.Module) -> bool:
        return isinstance(module, MultiHeadSelfAttention) or is_plain_attention(module)


@builds(MSASpec)
class MultiHeadSelfAttention(QKVAttention):
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
        qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        super().__init__(dim, num_heads, MSASpec(), qkv, nn.Linear(dim, dim, bias=proj_bias, **factory), proj_drop)

    @classmethod
    def from_projections(cls, source: Projections, spec: MSASpec) -> MultiHeadSelfAttention:
        """The same attention as `source`, its query, key and value rows stacked into one projection.

        Raises InputError if the source has no keys of its own.
        """
        keys = source.own_keys("to build MSA from")
        module = cls(
            source.dim,
            source.num_heads,
            qkv_bias=source.query.bias is not None,
            proj_bias=source.proj.bias is not None,
            proj_drop=source.proj_drop,
            device="meta",
        )
        module.qkv = linear_from(source.query, keys, source.value)
        module.proj = linear_from(source.proj)
        return module

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        q_BHNC, k_BHNC, _ = self.split_qkv(x_BND)
        return (q_BHNC @ k_BHNC.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core in the paper's accounting."""
        products = 2 * num_tokens**2 * self.dim
        return products + self.num_heads * num_tokens**2, products


register_reader(MultiHeadSelfAttention)(read_qkv)
