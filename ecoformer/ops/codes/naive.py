"""Attention on codes with the full N x N matrix; the tests hold the fast forms against it.

Shapes: B batch, H heads, N tokens, C head channels, K code length.
"""

from torch import Tensor

from ecoformer.ops.codes.folded import Affine


def binary_attention_reference(
    code_q_BHNK: Tensor, code_k_BHNK: Tensor, v_BHNC: Tensor, weight_HK: Tensor, floor_H: Tensor
) -> Tensor:
    """out_i = sum_j w_ij v_j / sum_j w_ij with w_ij = sum_b weight_b q_ib k_jb + floor, with the full N x N matrix."""
    product_BHNNK = code_q_BHNK[:, :, :, None, :] * code_k_BHNK[:, :, None, :, :]
    weights_BHNN = (product_BHNNK * weight_HK[None, :, None, None, :]).sum(dim=-1) + floor_H[None, :, None, None]
    return weights_BHNN @ v_BHNC / weights_BHNN.sum(dim=-1, keepdim=True)


def distilled_attention_reference(
    x_BND: Tensor,
    to_codes: Affine,
    value: Affine,
    proj: Affine,
    weight_HK: Tensor | None,
    floor_H: Tensor,
    slope: float | None = None,
    exponents: tuple[int, int] | None = None,
) -> Tensor:
    """Attention on the codes of all tokens, step by step: codes, values, N x N weights, output projection.

    Codes are bits, soft ones with a slope, or powers of two whose exponents lie in a range.
    """
    num_heads = len(floor_H)
    y_BNT = to_codes(x_BND)
    if exponents is not None:
        codes_BNT = 2 ** y_BNT.round().clip(*exponents)
    else:
        codes_BNT = (y_BNT >= 0).to(y_BNT.dtype) if slope is None else 1 / (1 + (-slope * y_BNT).exp())
    code_q_BHNK, code_k_BHNK = codes_BNT.unflatten(-1, (2, num_heads, -1)).permute(2, 0, 3, 1, 4)
    weight_HK = code_q_BHNK.new_ones(code_q_BHNK.shape[1::2]) if weight_HK is None else weight_HK
    v_BHNC = value(x_BND).unflatten(-1, (num_heads, -1)).transpose(1, 2)
    out_BHNC = binary_attention_reference(code_q_BHNK, code_k_BHNK, v_BHNC, weight_HK, floor_H)
    return proj(out_BHNC.transpose(1, 2).flatten(2))
