"""Projections whose weights are -1, 0 or +1 times one scale a feature: all products are additions.

Ternary weights of a threshold and a mean: Li et al., Ternary Weight Networks, 2016 (arXiv:1605.04711). Shapes: F
features, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 0.7  # of a feature's mean absolute weight: what lies below becomes 0 (Li et al., section 2.3)


def ternary(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """(signs (F, D) in {-1, 0, +1}, scale (F, 1)) nearest to the weights. Ternary weights are their own nearest."""
    size_FD = weight_FD.abs()
    kept_FD = size_FD > THRESHOLD * size_FD.mean(dim=-1, keepdim=True)
    scale_F1 = (size_FD * kept_FD).sum(dim=-1, keepdim=True) / kept_FD.sum(dim=-1, keepdim=True).clamp_min(1)
    return weight_FD.sign() * kept_FD, scale_F1


def straight_through_ternary(weight_FD: Tensor) -> Tensor:
    """The nearest ternary weights, scaled; the gradient is that of the weights as they are."""
    signs_FD, scale_F1 = ternary(weight_FD.detach())
    return weight_FD + (signs_FD * scale_F1 - weight_FD).detach()


@dataclass(frozen=True)
class TernaryAffine:
    """scale (x signs^T) + bias: signs (F, D) of any dtype, scale and bias (F,)."""

    signs: Tensor
    scale: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        # The sign of a sign is itself: said for the ledger, which takes nobody's word for what a tensor holds.
        return torch.addcmul(self.bias, F.linear(x, self.signs.to(x).sign()), self.scale)

    def like(self, x: Tensor) -> TernaryAffine:
        """Scale and bias in x's dtype and on its device."""
        return TernaryAffine(self.signs, self.scale.to(x), self.bias.to(x))
