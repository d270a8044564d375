"""Naive, readable forms of the attentions; the tests hold the fast forms against them.

Source of the hash attention: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022,
and the behaviour of its published code; of the others, what their docstrings cite. Shapes: B batch, H heads, N tokens,
C head channels, K code bits, M anchors or projected tokens, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ecoformer.ops.codes.folded import Affine


def kernel_features_reference(x_BHNC: Tensor, anchors_HMC: Tensor) -> Tensor:
    """Gaussian kernel of every token against every anchor, (B, H, N, M), with the five-dimensional difference.

    The bandwidth sigma is the mean squared distance over the tokens and anchors of one sample and head.
    """
    difference_BHNMC = x_BHNC[:, :, :, None, :] - anchors_HMC[None, :, None, :, :]
    distance_BHNM = difference_BHNMC.square().sum(dim=-1)
    sigma_BH11 = distance_BHNM.mean(dim=(2, 3), keepdim=True)
    return torch.exp(-distance_BHNM / (2 * sigma_BH11))


def pre_codes_reference(x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, mean_HM: Tensor) -> Tensor:
    """The values whose signs are the codes, (B, H, N, K): centred kernel features times A^T."""
    centred_BHNM = kernel_features_reference(x_BHNC, anchors_HMC) - mean_HM[None, :, None, :]
    return torch.einsum("bhnm,hkm->bhnk", centred_BHNM, A_HKM)


def hash_attention_reference(code_q_BHNK: Tensor, code_k_BHNK: Tensor, v_BHNC: Tensor, numerator: str) -> Tensor:
    """Attention whose weights are code similarities raised by K + 1, with the full N x N matrix.

    "kernel":    out_i = sum_j (h_i . h_j + K + 1) v_j / sum_j (h_i . h_j + K + 1)
    "own_token": out_i = (sum_j (h_i . h_j) v_j + (K + 1) v_i) / sum_j (h_i . h_j + K + 1)
    """
    num_bits = code_q_BHNK.shape[-1]
    similarity_BHNN = code_q_BHNK @ code_k_BHNK.transpose(-2, -1)
    offset = num_bits + 1
    denominator_BHN1 = (similarity_BHNN + offset).sum(dim=-1, keepdim=True)
    if numerator == "kernel":
        return (similarity_BHNN + offset) @ v_BHNC / denominator_BHN1
    return (similarity_BHNN @ v_BHNC + offset * v_BHNC) / denominator_BHN1


def softmax_attention_reference(q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v with the full N x N matrix (Vaswani et al., 2017, eq. 1)."""
    scores_BHNN = q_BHNC @ k_BHNC.transpose(-2, -1) * q_BHNC.shape[-1] ** -0.5
    return scores_BHNN.softmax(dim=-1) @ v_BHNC


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
    weight_HK: Tensor,
    floor_H: Tensor,
    slope: float | None = None,
) -> Tensor:
    """Binary attention on the codes of all tokens, step by step: codes, values, N x N weights, output projection."""
    num_heads, num_bits = weight_HK.shape
    y_BNT = to_codes(x_BND)
    codes_BNT = (y_BNT >= 0).to(y_BNT.dtype) if slope is None else 1 / (1 + (-slope * y_BNT).exp())
    code_q_BHNK, code_k_BHNK = codes_BNT.unflatten(-1, (2, num_heads, num_bits)).permute(2, 0, 3, 1, 4)
    v_BHNC = value(x_BND).unflatten(-1, (num_heads, -1)).transpose(1, 2)
    out_BHNC = binary_attention_reference(code_q_BHNK, code_k_BHNK, v_BHNC, weight_HK, floor_H)
    return proj(out_BHNC.transpose(1, 2).flatten(2))


def linear_attention_reference(feature_q_BHNF: Tensor, feature_k_BHNF: Tensor, v_BHNC: Tensor) -> Tensor:
    """out_i = sum_j (f_i . g_j) v_j / sum_j f_i . g_j with the full N x N matrix (Katharopoulos et al., 2020, eq. 4).

    A token whose features meet no key gets zero.
    """
    weights_BHNN = torch.einsum("bhif,bhjf->bhij", feature_q_BHNF, feature_k_BHNF)
    total_BHN1 = weights_BHNN.sum(dim=-1, keepdim=True)
    return weights_BHNN @ v_BHNC / total_BHN1.masked_fill(total_BHN1 == 0, 1)


def favor_attention_reference(q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, projection_FC: Tensor) -> Tensor:
    """Attention on the positive features exp(w . x - |x|^2 / 2) / sqrt(F) of x = q or k over C^(1/4), as written.

    Choromanski et al., 2021, Lemma 1; nothing keeps the exponentials in range.
    """
    num_features, channels = projection_FC.shape

    def features(x_BHNC: Tensor) -> Tensor:
        x_BHNC = x_BHNC / channels**0.25
        exponent = torch.einsum("bhnc,fc->bhnf", x_BHNC, projection_FC) - x_BHNC.square().sum(-1, keepdim=True) / 2
        return exponent.exp() / num_features**0.5

    return linear_attention_reference(features(q_BHNC), features(k_BHNC), v_BHNC)


def projected_attention_reference(q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, E_MN: Tensor, F_MN: Tensor) -> Tensor:
    """softmax(q (E k)^T / sqrt(C)) (F v) with every sum written out (Wang et al., Linformer, 2020, eq. 7)."""
    keys_BHMC = torch.einsum("mn,bhnc->bhmc", E_MN, k_BHNC)
    values_BHMC = torch.einsum("mn,bhnc->bhmc", F_MN, v_BHNC)
    scores_BHNM = torch.einsum("bhnc,bhmc->bhnm", q_BHNC, keys_BHMC) / q_BHNC.shape[-1] ** 0.5
    return torch.einsum("bhnm,bhmc->bhnc", scores_BHNM.softmax(dim=-1), values_BHMC)
