"""ReLU linear attention, the global part of EfficientViT's.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from dataclasses import dataclass

from torch import Tensor

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import without_padding
from ecoformer.nn.specs import AttentionSpec
from ecoformer.ops.linear.attention import linear_attention, linear_attention_weights
from ecoformer.ops.precision import full_precision, without_autocast

EPS = 1e-15  # as EfficientViT: a query that meets no key gets zero


@dataclass(frozen=True)
class ReLULinearSpec(AttentionSpec):
    """relu(q) (relu(k)^T v) / (relu(q) . sum relu(k)), linear in the tokens.

    Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV 2023, eq. 2,
    without its multi-scale token aggregation; linear attention after Katharopoulos et al., "Transformers are RNNs",
    ICML 2020. Scores are homogeneous in q and k, so there is no 1 / sqrt(C).
    """

    name = "relu_linear"


@attention_kind(ReLULinearSpec)
class ReLULinearAttention(ReplacementAttention):
    """Linear attention on rectified queries and keys, in float32 whatever the autocast: sums run over all tokens."""

    takes_mask = True

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        with without_autocast(v_BHNC):
            q, k, v = (full_precision(x) for x in (q_BHNC, k_BHNC, v_BHNC))
            return linear_attention(q.relu(), without_padding(k.relu(), mask_BN), v, EPS).to(v_BHNC.dtype)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        q_BHNC, k_BHNC, _ = self.heads(x_BND)
        return linear_attention_weights(q_BHNC.relu(), k_BHNC.relu(), EPS)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """Per head and token: k^T v and q times it, C^2 each; the sum of keys, q times it and the division, C each."""
        products = num_tokens * self.dim * 2 * self.head_dim
        return products + 2 * num_tokens * self.dim, products + 2 * num_tokens * self.dim
