"""EcoFormer as its paper writes it, with dense matrices; the tests hold the fast forms against it.

Source: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022, and the behaviour of its
published code; the objective of its hash functions (section 4.2) is after kernel-based supervised hashing (Liu et al.,
CVPR 2012, eqs. 5 to 13). Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors.
"""

import torch
from torch import Tensor

from ecoformer.ops.ecoformer.codes import sign
from ecoformer.ops.ecoformer.similarity_targets import distinguishes


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


def similarity_targets(x_BHNC: Tensor, top_k: int) -> Tensor:
    """S0 (B, H, N, N): in row i, +1 for the top_k tokens of largest dot product with token i, -1 for the smallest.

    A row of a zero token, or among identical tokens, tells no token from another; it is zero.
    """
    similarity_BHNN = x_BHNC @ x_BHNC.transpose(-2, -1)
    top = similarity_BHNN.topk(top_k, dim=-1)
    bottom = similarity_BHNN.topk(top_k, dim=-1, largest=False)
    target_BHNN = torch.zeros_like(similarity_BHNN).scatter_(-1, top.indices, 1.0)
    target_BHNN.scatter_(-1, bottom.indices, -1.0)
    return target_BHNN * distinguishes(top.values, bottom.values).unsqueeze(-1)


def soft_objective(features_BHNM: Tensor, S_BHNN: Tensor, a_HM: Tensor, num_bits: int) -> Tensor:
    """The differentiable loss of one bit: mean over B, H of -y^T S y / (N K) with y = 2 sigmoid(k a) - 1."""
    num_tokens = features_BHNM.shape[2]
    y_BHN = 2 * torch.sigmoid(torch.einsum("bhnm,hm->bhn", features_BHNM, a_HM)) - 1
    product_BHN = torch.einsum("bhij,bhj->bhi", S_BHNN, y_BHN)
    return -(y_BHN * product_BHN).sum(dim=-1).mean() / (num_tokens * num_bits)


def hard_codes(features_BHNM: Tensor, a_HM: Tensor) -> Tensor:
    return sign(torch.einsum("bhnm,hm->bhn", features_BHNM, a_HM))


def hard_objective(code_BHN: Tensor, S_BHNN: Tensor, num_bits: int) -> Tensor:
    """The loss with codes in {-1, +1}. Its terms are integers; float64 sums keep them exact."""
    product_BHN = torch.einsum("bhij,bhj->bhi", S_BHNN, code_BHN)
    num_tokens = code_BHN.shape[-1]
    return -(code_BHN.double() * product_BHN.double()).sum(dim=-1).mean() / (num_tokens * num_bits)
