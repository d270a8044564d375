"""Softmax attention whose keys are its queries: what sharing one projection costs before any hashing.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import as_attn_mask
from ecoformer.nn.msa import MultiHeadSelfAttention
from ecoformer.nn.specs import AttentionSpec


@dataclass(frozen=True)
class SharedQKSpec(AttentionSpec):
    """softmax(q q^T / sqrt(C)) v: plain attention with one projection for queries and keys.

    The control for EcoFormer's shared projection (Liu et al., EcoFormer, NeurIPS 2022). Shared queries and
    keys are known from Kitaev et al., "Reformer: The Efficient Transformer", ICLR 2020, which also normalises the keys
    and masks the token itself; here neither is done, so only the projection differs from MSA.
    """

    name = "msa_shared_qk"


@attention_kind(SharedQKSpec)
class SharedQKAttention(ReplacementAttention):
    """MSA with the key rows made equal to the query rows; its projections are named as EcoFormer's."""

    parts: Mapping[str, str] = {"query": "to_qk", "value": "to_v", "proj": "proj"}
    takes_mask = True

    def attend(self, qk_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(qk_BHNC, qk_BHNC, v_BHNC, as_attn_mask(mask_BN))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        qk_BHNC, _ = self.heads(x_BND)
        return (qk_BHNC @ qk_BHNC.transpose(-2, -1) * self.head_dim**-0.5).softmax(dim=-1)

    paper_core_ops = MultiHeadSelfAttention.paper_core_ops  # what is saved is a projection, a Linear
