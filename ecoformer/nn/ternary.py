"""A Linear with ternary weights: trained by the straight-through estimator, computed by additions.

Shapes: F features (out), D channels (in).
"""

import torch
from torch import Tensor

from ecoformer.nn.coded import CodedLinear
from ecoformer.ops.codes.ternary import TernaryAffine, straight_through_ternary, ternary


class TernaryLinear(CodedLinear):
    """x times the ternary weights that are nearest to `weight`, one scale a feature, plus the bias.

    Its codes are `signs` (F, D), int8, and `scale` (F,).
    """

    signs: Tensor
    scale: Tensor
    straight_through = staticmethod(straight_through_ternary)

    @staticmethod
    def nearest(weight_FD: Tensor) -> dict[str, Tensor]:
        signs_FD, scale_F1 = ternary(weight_FD)
        return {"signs": signs_FD.to(torch.int8), "scale": scale_F1.squeeze(1)}

    @property
    def share(self) -> float:
        """Of the weights that are not 0; 1 where they have no values (meta)."""
        return 1.0 if self.signs.is_meta else float(self.signs.count_nonzero()) / self.signs.numel()

    def coded(self) -> TernaryAffine:
        return TernaryAffine(self.signs, self.scale, self.bias)
