"""Attention on 0/1 codes of separate queries and keys, linear in the tokens.

Codes come from Gaussian kernel features with a bandwidth of their own, so a token's code depends on that token alone.
Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors, F features (M, or C without anchors).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.ops.codes.fitted import Fitted
from ecoformer.ops.ecoformer.codes import is_differentiated, squared_distances, straight_through_sign


@dataclass(frozen=True)
class TokenHash(Fitted):
    """Hash functions of queries or of keys: code = (features A^T >= threshold).

    A_HKF, threshold_HK; anchors_HMC and bandwidth_H (sigma, above 0) of the kernel, both None for a hash that is
    linear in the token.
    """

    fitted = ("A_HKF", "threshold_HK", "anchors_HMC", "bandwidth_H")

    A_HKF: Tensor
    threshold_HK: Tensor
    anchors_HMC: Tensor | None = None
    bandwidth_H: Tensor | None = None


def token_features(x_BHNC: Tensor, anchors_HMC: Tensor | None, bandwidth_H: Tensor | None) -> Tensor:
    """exp(-|x - a|^2 / (2 sigma)) as (B, H, N, M); the token itself without anchors."""
    if anchors_HMC is None:
        return x_BHNC
    assert bandwidth_H is not None
    return torch.exp(squared_distances(x_BHNC, anchors_HMC) * (-0.5 / bandwidth_H)[:, None, None])


def straight_through_step(y: Tensor) -> Tensor:
    """Codes in {0, 1} of y's dtype, 1 where y >= 0.

    Differentiable as (sign(y) + 1) / 2 by the straight-through estimator.
    """
    if is_differentiated(y):
        return (straight_through_sign(y) + 1) * 0.5
    return (y >= 0).to(y.dtype)


def soft_step(y: Tensor, slope: float) -> Tensor:
    """sigmoid(slope y): codes in (0, 1) that near those of `straight_through_step` as the slope grows."""
    return torch.sigmoid(slope * y)


def binary_codes(x_BHNC: Tensor, hashing: TokenHash) -> Tensor:
    """Codes (B, H, N, K) in {0, 1}."""
    features_BHNF = token_features(x_BHNC, hashing.anchors_HMC, hashing.bandwidth_H)
    projected_BHNK = torch.matmul(features_BHNF, hashing.A_HKF.transpose(-2, -1))
    return straight_through_step(projected_BHNK - hashing.threshold_HK[:, None, :])


def binary_attention(
    code_q_BHNK: Tensor,
    code_k_BHNK: Tensor,
    v_BHNC: Tensor,
    weight_HK: Tensor | None,
    floor_H: Tensor,
    mask_BN: Tensor | None = None,
) -> Tensor:
    """Attention output (B, H, N, C) with weights sum_b weight_b q_ib k_jb + floor, never an N x N matrix.

    Codes are at least 0 (or +-1 with a floor of at least sum_b weight_b), `weight_HK` is at least 0 (None: all 1, and
    nothing is multiplied) and `floor_H` above 0, so that a token whose code meets no key takes the mean of all values.
    A column of ones beside v makes numerator and denominator one product: where `mask_BN` is False, a key is left out
    by zeros in both. See `naive.binary_attention_reference` for the quadratic form.
    """
    v_and_one = torch.cat([v_BHNC, torch.ones_like(v_BHNC[..., :1])], dim=-1)
    if mask_BN is not None:
        v_and_one = v_and_one * mask_BN[:, None, :, None]
    context_BHKC = torch.matmul(code_k_BHNK.transpose(-2, -1), v_and_one)
    if weight_HK is not None:
        context_BHKC = context_BHKC * weight_HK.unsqueeze(-1)
    lifted_BH1C = floor_H[:, None, None] * v_and_one.sum(dim=-2, keepdim=True)
    out = torch.matmul(code_q_BHNK, context_BHKC) + lifted_BH1C
    return out[..., :-1] / out[..., -1:]


def binary_weights(code_q_BHNK: Tensor, code_k_BHNK: Tensor, weight_HK: Tensor | None, floor_H: Tensor) -> Tensor:
    """The normalised weights (B, H, N, N) that `binary_attention` sums the values with: quadratic, for pictures."""
    weighted_BHNK = code_q_BHNK if weight_HK is None else code_q_BHNK * weight_HK.unsqueeze(-2)
    raised_BHNN = weighted_BHNK @ code_k_BHNK.transpose(-2, -1) + floor_H[:, None, None]
    return raised_BHNN / raised_BHNN.sum(dim=-1, keepdim=True)
