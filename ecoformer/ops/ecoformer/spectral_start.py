"""The closed form that a greedy hash fit may start each bit from.

With real numbers in place of codes, y = F a, the loss -y^T S y under y^T y = N is a generalised eigenproblem: a is the
top eigenvector of F^T S F against F^T F. Source: Liu et al., "Supervised Hashing with Kernels", CVPR 2012, section 3.3.
Shapes: H heads, N tokens, M anchors; P = H * B (head, sample) pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor


class SpectralStart:
    """The eigenproblem of the next bit; `append` takes the codes of a bit that is chosen out of S, as the fit does.

    Args:
        features_PMN: centred kernel features F, tokens last.
        targets: the symmetric part of S before the first bit, sparse over all P * N tokens.
        num_heads: H; heads come first in P.

    It is solved in float64, (H, M, M) matrices only. On CUDA the decomposition waits for the device, once a bit.
    """

    def __init__(self, features_PMN: Tensor, targets: Tensor, num_heads: int) -> None:
        self.features_PMN, self.num_heads = features_PMN, num_heads
        num_pairs, num_anchors, num_tokens = features_PMN.shape
        flat_TM = features_PMN.transpose(1, 2).reshape(-1, num_anchors)
        product_PNM = (targets @ flat_TM).view(num_pairs, num_tokens, num_anchors)
        self.similarity_HMM = self._sum_over_samples(torch.bmm(features_PMN, product_PNM))
        gram_HMM = self._sum_over_samples(torch.bmm(features_PMN, features_PMN.transpose(1, 2)))
        values_HM, vectors_HMM = torch.linalg.eigh(gram_HMM)
        # Directions in which the features do not vary (identical tokens, say) stay out.
        smallest_H1 = values_HM[:, -1:] * num_anchors * torch.finfo(features_PMN.dtype).eps
        varies_HM = values_HM > smallest_H1
        scale_HM = torch.where(varies_HM, values_HM, 1.0).rsqrt() * varies_HM
        self.whitening_HMM = vectors_HMM * scale_HM.unsqueeze(1)
        self.norm = (num_tokens * num_pairs // num_heads) ** 0.5

    def row(self) -> Tensor:
        """a (H, M), scaled so that F a has mean square 1."""
        whitened_HMM = self.whitening_HMM.transpose(1, 2) @ self.similarity_HMM @ self.whitening_HMM
        _, vectors_HMM = torch.linalg.eigh(whitened_HMM)
        a_HM1 = self.whitening_HMM @ vectors_HMM[:, :, -1:]
        return (self.norm * a_HM1[:, :, 0]).to(self.features_PMN.dtype)

    def append(self, code_PN: Tensor) -> None:
        """Take y y^T out of S."""
        overlap_PM1 = torch.bmm(self.features_PMN, code_PN.unsqueeze(2))
        self.similarity_HMM -= self._sum_over_samples(torch.bmm(overlap_PM1, overlap_PM1.transpose(1, 2)))

    def _sum_over_samples(self, x_PMM: Tensor) -> Tensor:
        return x_PMM.double().unflatten(0, (self.num_heads, -1)).sum(dim=1)
