"""Softmax attention and the linear forms that stand for it, as written; the tests hold the fast forms against them.

Sources: what the docstrings cite. Shapes: B batch, H heads, N tokens, C head channels, M projected tokens, F features.
"""

import torch
from torch import Tensor


def softmax_attention_reference(q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(C)) v with the full N x N matrix (Vaswani et al., 2017, eq. 1)."""
    scores_BHNN = q_BHNC @ k_BHNC.transpose(-2, -1) * q_BHNC.shape[-1] ** -0.5
    return scores_BHNN.softmax(dim=-1) @ v_BHNC


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
