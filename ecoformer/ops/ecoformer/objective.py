"""What the hash functions of kernelised binary codes are fitted to, with no N x N matrix.

Source: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022, section 4.2.
Shapes: B batch, H heads, N tokens, C head channels, M anchors; P = H * B (head, sample) pairs in that order; r bits
already fitted.
"""

import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.ops.ecoformer.codes import sign
from ecoformer.ops.ecoformer.similarity_targets import symmetric_targets


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays; everything else is fitted in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_fit_inputs(
    x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, mask_BN: Tensor | None, top_k: int, *sgd: float
) -> None:
    """Raise InputError for values a user can set wrong; assert the shapes that only code can get wrong.

    `sgd`: lr, momentum and steps.
    """
    lr, momentum, steps = sgd
    assert x_BHNC.dim() == 4 and anchors_HMC.dim() == 3 and A_HKM.dim() == 3
    _, num_heads, num_tokens, channels = x_BHNC.shape
    assert anchors_HMC.shape == (num_heads, A_HKM.shape[2], channels) and A_HKM.shape[0] == num_heads
    if x_BHNC.shape[0] < 1 or A_HKM.shape[1] < 1 or A_HKM.shape[2] < 1:
        raise InputError(
            f"hash fit got {x_BHNC.shape[0]} samples, {A_HKM.shape[1]} bits and {A_HKM.shape[2]} anchors: "
            "it needs at least one of each"
        )
    if mask_BN is not None:
        num_tokens = int(mask_BN.sum(dim=1).max())
    if not 1 <= top_k <= num_tokens // 2:
        raise InputError(
            f"top_k={top_k} must lie in [1, {num_tokens // 2}], half of the {num_tokens} tokens: "
            "more would count a token as similar and dissimilar at once; change top_k or raise the image size"
        )
    if steps < 0:
        raise InputError(f"steps={steps} must be at least 0")
    if not 0 < lr <= torch.finfo(torch.float32).max:
        raise InputError(f"lr={lr} must be a finite number above 0")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum} must lie in [0, 1)")


class HashObjective:
    """The loss of the next bit, -y^T S y / (N K) averaged over samples and heads, and its gradient.

    S = K S0 - sum over earlier bits of y_r y_r^T is never formed: y^T S y = K y^T S0 y - sum (y^T y_r)^2, with
    S0 sparse (2 * top_k entries per row). S is not symmetric but only its symmetric part counts. Features and targets
    of tokens that are not usable are 0; `masked`: samples have such tokens beside others.

    Features and codes are kept with tokens last: every product is then a (1, n) x (n, N) or (1, N) x (N, n)
    batch over the pairs, the fastest form on CPU.
    """

    def __init__(
        self,
        x_BHNC: Tensor,
        features_BHNM: Tensor,
        usable_BN: Tensor,
        *,
        num_bits: int,
        top_k: int,
        masked: bool = False,
    ) -> None:
        self.num_samples, self.num_heads, self.num_tokens, _ = features_BHNM.shape
        self.pairs = self.num_heads * self.num_samples
        self.features_PMN = features_BHNM.permute(1, 0, 3, 2).contiguous().flatten(0, 1)
        x_PNC = x_BHNC.transpose(0, 1).flatten(0, 1)
        usable_PN = usable_BN.repeat(self.num_heads, 1)
        self.targets = symmetric_targets(x_PNC, top_k, 0.5 * num_bits, usable_PN if masked else None)
        self.usable_PN = usable_PN.to(features_BHNM.dtype)
        self.codes_PKN = features_BHNM.new_zeros(self.pairs, num_bits, self.num_tokens)
        self.num_fitted = 0
        num_terms = usable_BN.sum(dtype=torch.float64) * (self.num_heads * num_bits)
        self.scale = -1 / num_terms

    def project(self, a_HM: Tensor) -> Tensor:
        """k a, (P, N)."""
        a_HBM = a_HM.unsqueeze(1).expand(-1, self.num_samples, -1)
        return torch.bmm(a_HBM.reshape(self.pairs, 1, -1), self.features_PMN).squeeze(1)

    def residual_product(self, y_PN: Tensor) -> Tensor:
        """(S + S^T)/2 y, (P, N)."""
        product_PN = torch.mv(self.targets, y_PN.flatten()).view_as(y_PN)
        if self.num_fitted:
            earlier_PrN = self.codes_PKN[:, : self.num_fitted]
            overlap_P1r = torch.bmm(y_PN.unsqueeze(1), earlier_PrN.transpose(1, 2))
            product_PN.unsqueeze(1).baddbmm_(overlap_P1r, earlier_PrN, alpha=-1)
        return product_PN

    def soft(self, a_HM: Tensor) -> tuple[Tensor, Tensor]:
        """The loss with y = 2 sigmoid(k a) - 1, and its gradient (H, M), both still to be multiplied by `scale`."""
        y_PN = self.project(a_HM).sigmoid_().mul_(2).sub_(1)
        product_PN = self.residual_product(y_PN)
        loss = torch.dot(y_PN.flatten(), product_PN.flatten())
        # dy/d(k a) = (1 - y^2) / 2, and the 2 of d(y^T S y) cancels the half
        slope_PN = torch.ops.aten.tanh_backward(product_PN, y_PN)
        gradient_P1M = torch.bmm(slope_PN.unsqueeze(1), self.features_PMN.transpose(1, 2))
        return loss, gradient_P1M.view(self.num_heads, self.num_samples, -1).sum(dim=1)

    def codes(self, a_HM: Tensor) -> Tensor:
        """Codes (P, N) in {-1, +1}; 0 for tokens that were left out."""
        return sign(self.project(a_HM)) * self.usable_PN

    def hard(self, code_PN: Tensor) -> Tensor:
        """The loss of codes. Every product is a small integer (or half one), so float64 sums are exact."""
        return (code_PN * self.residual_product(code_PN)).sum(dtype=torch.float64) * self.scale

    def append(self, code_PN: Tensor) -> None:
        """Take the codes of a bit that is fitted out of the residual S."""
        self.codes_PKN[:, self.num_fitted] = code_PN
        self.num_fitted += 1
