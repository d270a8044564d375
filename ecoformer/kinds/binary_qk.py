"""Softmax attention on the signs of queries and keys: what the EcoFormer paper argues against.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import as_attn_mask
from ecoformer.nn.specs import AttentionSpec
from ecoformer.ops.ecoformer.codes import straight_through_sign


@dataclass(frozen=True)
class BinaryQKSpec(AttentionSpec):
    """softmax(sign(q) sign(k)^T / sqrt(C)) v.

    Binarising queries and keys directly, as binary networks do (Hubara et al., "Binarized Neural Networks", NeurIPS
    2016; in transformers Qin et al., "BiBERT", ICLR 2022). Liu et al. (EcoFormer, NeurIPS 2022) argue
    against it: signs of single channels need not keep the similarity of two tokens, and the softmax over all pairs of
    tokens stays quadratic. Gradients pass straight through the sign where its argument lies within (-1, 1).
    """

    name = "binary_qk"


@attention_kind(BinaryQKSpec)
class BinaryQKAttention(ReplacementAttention):
    """Softmax attention whose scores count the channels in which a query and a key agree in sign.

    The scores are a product of its own, not torch's fused attention: with both factors +-1 it is XNOR and popcount, and
    the audited ledger has to see that.
    """

    takes_mask = True

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return self._weights(q_BHNC, k_BHNC, mask_BN) @ v_BHNC

    def _weights(self, q_BHNC: Tensor, k_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        code_q_BHNC, code_k_BHNC = straight_through_sign(q_BHNC), straight_through_sign(k_BHNC)
        scores_BHNN = code_q_BHNC @ code_k_BHNC.transpose(-2, -1) * self.head_dim**-0.5
        mask = as_attn_mask(mask_BN)
        return (scores_BHNN if mask is None else scores_BHNN.masked_fill(~mask, -math.inf)).softmax(dim=-1)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        q_BHNC, k_BHNC, _ = self.heads(x_BND)
        return self._weights(q_BHNC, k_BHNC)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """MSA's 2 N^2 D + H N^2 multiplications less the N^2 D of the scores, whose terms are additions of +-1."""
        product = num_tokens**2 * self.dim
        return product + self.num_heads * num_tokens**2, 2 * product
