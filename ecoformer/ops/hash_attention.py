"""Linear attention on binary codes: contexts of rows of v, summed with signs, never an N x N matrix.

Shapes: B batch, H heads, N tokens, C head channels, K code bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hash_attention(code_q_BHNK: Tensor, code_k_BHNK: Tensor, v_BHNC: Tensor, numerator: str) -> Tensor:
    """Attention output (B, H, N, C) with weights h_i . h_j + K + 1 (EcoFormer and its published code).

    A column of ones beside v makes numerator and denominator one product. Codes are +-1, so both products are
    signed sums of rows; pass float32, half precision cannot count above 2048. See `EcoFormerSpec` for the two
    numerators and `ops.reference.hash_attention_reference` for the quadratic form.
    """
    num_tokens, num_bits = code_q_BHNK.shape[-2:]
    offset = num_bits + 1
    v_and_one = torch.cat([v_BHNC, torch.ones_like(v_BHNC[..., :1])], dim=-1)
    context = torch.matmul(code_k_BHNK.transpose(-2, -1), v_and_one)
    out = torch.matmul(code_q_BHNK, context)
    weighted_BHNC, similarity_BHN1 = out[..., :-1], out[..., -1:]
    raised = v_BHNC if numerator == "own_token" else v_BHNC.sum(dim=-2, keepdim=True)
    return (weighted_BHNC + offset * raised) / (similarity_BHN1 + num_tokens * offset)
