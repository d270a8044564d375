"""FAVOR+: softmax attention estimated by positive orthogonal random features.

Source: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021: Lemma 1 (positive features), section 2.4
(orthogonal blocks). Shapes: B batch, H heads, N tokens, C head channels, F features.
"""

import math

import torch
from torch import Tensor, nn

from ecoformer.ops.linear.attention import linear_attention


def orthogonal_projection(num_features: int, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Random directions (F, C) on the CPU, float32: each row is N(0, 1) and each block of C rows is orthogonal.

    A block is a uniformly random orthogonal matrix whose rows are stretched to lengths of Gaussian vectors, so every
    row alone is as Gaussian as an independent draw and the features stay unbiased; the last block may be cut short.
    """
    blocks = []
    for start in range(0, num_features, channels):
        empty_CC = torch.empty(channels, channels, device="cpu", dtype=torch.float32)
        blocks.append(nn.init.orthogonal_(empty_CC, generator=generator).T[: num_features - start])
    lengths_F1 = torch.randn(num_features, channels, generator=generator, device="cpu").norm(dim=1, keepdim=True)
    return torch.cat(blocks) * lengths_F1


def key_exponents(k_BHNC: Tensor, projection_FC: Tensor) -> Tensor:
    """w . k' - |k'|^2 / 2 as (B, H, N, F) with k' = k / C^(1/4): exp of them are the positive features, times sqrt(F).

    The mean over features of exp(exponent of q + exponent of k) estimates exp(q . k / sqrt(C)) without bias.
    """
    scale = k_BHNC.shape[-1] ** -0.25
    half_square_BHN1 = k_BHNC.square().sum(dim=-1, keepdim=True) * (0.5 * scale**2)
    return torch.matmul(k_BHNC, (projection_FC * scale).T) - half_square_BHN1


def favor_features(
    q_BHNC: Tensor, k_BHNC: Tensor, projection_FC: Tensor, mask_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Features (B, H, N, F) of queries and keys whose inner products are the estimated weights, up to a factor a query.

    Those of keys that take no part, where a mask says so, are 0.

    Nothing overflows and no denominator vanishes, whatever the scores. A key's exponent is lowered by the largest one
    of its feature over all keys, a query's raised by as much, and then lowered by the query's own largest: what is left
    of either is a factor that a token's numerator and denominator share. The length of a query is such a factor too and
    is not even computed. Every feature so has a key, and every query a feature, of value 1: denominators are at least 1
    and no small constant has to bias the estimate. The published code lowers all keys by one number and adds 1e-6.
    """
    exponent_k_BHNF = key_exponents(k_BHNC, projection_FC)
    if mask_BN is not None:
        exponent_k_BHNF = exponent_k_BHNF.masked_fill(~mask_BN[:, None, :, None], -math.inf)
    shift_BH1F = exponent_k_BHNF.detach().amax(dim=-2, keepdim=True)
    scale = q_BHNC.shape[-1] ** -0.25
    exponent_q_BHNF = torch.matmul(q_BHNC, (projection_FC * scale).T) + shift_BH1F
    feature_q_BHNF = torch.exp(exponent_q_BHNF - exponent_q_BHNF.detach().amax(dim=-1, keepdim=True))
    return feature_q_BHNF, torch.exp(exponent_k_BHNF - shift_BH1F)


def favor_attention(
    q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, projection_FC: Tensor, mask_BN: Tensor | None = None
) -> Tensor:
    """Attention output (B, H, N, C), linear in the tokens: approximately softmax(q k^T / sqrt(C)) v.

    See `naive.favor_attention_reference` for the quadratic form without stabilisation.
    """
    return linear_attention(*favor_features(q_BHNC, k_BHNC, projection_FC, mask_BN), v_BHNC)
