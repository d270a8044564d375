"""Attention whose weights are inner products of non-negative features: associativity instead of an N x N matrix.

Source: Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention", ICML
2020, eq. 4-6. Shapes: B batch, H heads, N tokens, C head channels, F features.
"""

import torch
from torch import Tensor


def linear_attention(feature_q_BHNF: Tensor, feature_k_BHNF: Tensor, v_BHNC: Tensor, eps: float = 0.0) -> Tensor:
    """out_i = sum_j (f_i . g_j) v_j / (sum_j f_i . g_j + eps) as (B, H, N, C), in time and memory linear in N.

    A column of ones beside v makes numerator and denominator one product. With eps=0 every token needs a positive
    denominator. See `naive.linear_attention_reference` for the quadratic form.
    """
    v_and_one = torch.cat([v_BHNC, torch.ones_like(v_BHNC[..., :1])], dim=-1)
    context_BHFC = torch.matmul(feature_k_BHNF.transpose(-2, -1), v_and_one)
    out = torch.matmul(feature_q_BHNF, context_BHFC)
    denominator_BHN1 = out[..., -1:]
    return out[..., :-1] / (denominator_BHN1 + eps if eps else denominator_BHN1)


def linear_attention_weights(feature_q_BHNF: Tensor, feature_k_BHNF: Tensor, eps: float = 0.0) -> Tensor:
    """The weights (B, H, N, N) that `linear_attention` sums the values with: quadratic, for pictures."""
    similarity_BHNN = feature_q_BHNF @ feature_k_BHNF.transpose(-2, -1)
    return similarity_BHNN / (similarity_BHNN.sum(dim=-1, keepdim=True) + eps)
