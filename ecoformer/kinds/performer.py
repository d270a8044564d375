"""Performer: softmax attention estimated by random features (FAVOR+), linear in the tokens.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, F features.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.projections import Projections
from ecoformer.nn.random_features import RedrawnAttention
from ecoformer.nn.specs import MOST_CODES, AttentionSpec
from ecoformer.ops.linear.attention import linear_attention_weights
from ecoformer.ops.linear.favor import favor_attention, favor_features, orthogonal_projection
from ecoformer.ops.precision import full_precision, without_autocast


@dataclass(frozen=True)
class PerformerSpec(AttentionSpec):
    """FAVOR+ (Choromanski et al., "Rethinking Attention with Performers", ICLR 2021).

    Args:
        num_features: random features F, shared by the heads of a layer; None: C ln C of the layer's head channels C,
            the order that the paper's Theorem 4 asks for.
    """

    name = "performer"

    num_features: int | None = None

    def __post_init__(self) -> None:
        self.require_whole(1, "num_features", most=MOST_CODES)


@attention_kind(PerformerSpec)
class PerformerAttention(ReplacementAttention, RedrawnAttention):
    """Linear attention on positive orthogonal random features of queries and keys, in float32 whatever the autocast.

    The random directions are a buffer, so a checkpoint evaluates as it was trained. They are drawn from torch's global
    generator when the layer is built, and anew by `redraw`.
    """

    new_parts = ("projection",)
    takes_mask = True
    spec: PerformerSpec
    projection: Tensor

    def add_parts(self, source: Projections | None) -> None:
        default = max(1, round(self.head_dim * math.log(self.head_dim)))
        self.num_features = default if self.spec.num_features is None else self.spec.num_features
        projection_FC = orthogonal_projection(self.num_features, self.head_dim)
        self.register_buffer("projection", projection_FC.to(self.proj.weight.device))

    @torch.no_grad()
    def redraw(self, generator: torch.Generator) -> None:
        self.projection.copy_(orthogonal_projection(self.num_features, self.head_dim, generator))

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        with without_autocast(v_BHNC):
            q, k, v = (full_precision(x) for x in (q_BHNC, k_BHNC, v_BHNC))
            return favor_attention(q, k, v, self.projection.to(v.dtype), mask_BN).to(v_BHNC.dtype)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        q_BHNC, k_BHNC, _ = (full_precision(x) for x in self.heads(x_BND))
        return linear_attention_weights(*favor_features(q_BHNC, k_BHNC, self.projection.to(q_BHNC.dtype)))

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core, accounted as the paper accounts EcoFormer.

        Per head and token: two projections to F features, the square of the key and its half, k^T v and q times it,
        the sum of features, q times it, and the division. As in the paper's softmax, exp and the maxima are free.
        """
        features, channels = self.num_features, self.head_dim
        products = 4 * channels * features
        per_token_muls = products + channels + 1 + features + channels
        per_token_adds = products + channels + features + 2 * features
        return self.num_heads * num_tokens * per_token_muls, self.num_heads * num_tokens * per_token_adds
