"""Linear attention on binary codes: contexts of rows of v, summed with signs, never an N x N matrix.

Shapes: B batch, H heads, N tokens, C head channels, K code bits.
"""

import torch
from torch import Tensor


def hash_attention(
    code_q_BHNK: Tensor, code_k_BHNK: Tensor, v_BHNC: Tensor, numerator: str, real: Tensor | None = None
) -> Tensor:
    """Attention output (B, H, N, C) with weights h_i . h_j + K + 1 (EcoFormer and its published code).

    Codes are +-1, so the products are signed sums of rows; pass float32, half precision cannot count above 2048.
    `real`, of a shape that broadcasts to (B, H, N, 1), is 1 for keys that take part, else 0; None: all do.
    See `EcoFormerSpec` for the two numerators and `naive.hash_attention_reference` for the quadratic form.
    """
    num_tokens, num_bits = code_q_BHNK.shape[-2:]
    offset = num_bits + 1
    count: int | Tensor = num_tokens
    if real is not None:
        code_k_BHNK, count = code_k_BHNK * real, real.sum(dim=-2, keepdim=True)
    context_BHKC = torch.matmul(code_k_BHNK.transpose(-2, -1), v_BHNC)
    code_sum_BH1K = code_k_BHNK.sum(dim=-2, keepdim=True)
    # A row times a matrix: much faster than the matrix times a column on CPU, with the same sums.
    similarity_BHN1 = torch.matmul(code_sum_BH1K, code_q_BHNK.transpose(-2, -1)).transpose(-2, -1)
    denominator_BHN1 = similarity_BHN1 + count * offset
    weighted_BHNC = torch.matmul(code_q_BHNK, context_BHKC)
    if numerator == "own_token":
        return weighted_BHNC.add_(v_BHNC, alpha=offset) / denominator_BHN1
    all_v_BHNC = v_BHNC if real is None else v_BHNC * real
    return weighted_BHNC.add_(offset * all_v_BHNC.sum(dim=-2, keepdim=True)) / denominator_BHN1
