"""A Linear with ternary weights: trained by the straight-through estimator, computed by additions.

Shapes: F features (out), D channels (in).
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from ecoformer.ops.codes.folded import Affine
from ecoformer.ops.codes.ternary import TernaryAffine, straight_through_ternary, ternary


class TernaryLinear(nn.Linear):
    """x times the ternary weights that are nearest to `weight`, one scale a feature, plus the bias.

    `weight` is what training moves. Beside it stand, in the state dict, what runs without gradients: `signs`
    (F, D), int8, and `scale` (F,). They follow the weight whenever evaluation mode begins, and at `settle`.
    """

    signs: Tensor
    scale: Tensor

    def __init__(self, in_features: int, out_features: int, **factory: Any) -> None:
        super().__init__(in_features, out_features, **factory)
        device = self.weight.device
        self.register_buffer("signs", torch.zeros(out_features, in_features, dtype=torch.int8, device=device))
        self.register_buffer("scale", torch.zeros(out_features, device=device))
        self.settle()

    @torch.no_grad()
    def settle(self) -> None:
        """Take over what the weight has become."""
        if self._parameters["weight"] is None:
            return
        signs_FD, scale_F1 = ternary(self.weight)
        self.signs.copy_(signs_FD)
        self.scale.copy_(scale_F1.squeeze(1))

    def harden(self) -> None:
        """Forget the weight, for good: what is left is a byte a weight, and cannot be trained."""
        self.settle()
        self.register_parameter("weight", None)

    def train(self, mode: bool = True) -> Self:
        if not mode:
            self.settle()
        return super().train(mode)

    @property
    def share(self) -> float:
        """Of the weights that are not 0; 1 where they have no values (meta)."""
        return 1.0 if self.signs.is_meta else float(self.signs.count_nonzero()) / self.signs.numel()

    def affine(self) -> Affine | TernaryAffine:
        """What `forward` computes, for `ops`."""
        weight = self._parameters["weight"]
        if weight is not None and weight.requires_grad and torch.is_grad_enabled():
            return Affine(straight_through_ternary(weight), self.bias)
        return TernaryAffine(self.signs, self.scale, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., F)."""
        return self.affine().like(x)(x)
