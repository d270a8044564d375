"""A Linear whose weights are signed powers of two: trained by the straight-through estimator, computed by shifts.

Shapes: F features (out), D channels (in).
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoformer.nn.coded import CodedLinear
from ecoformer.nn.projections import linear_rows
from ecoformer.nn.turned import TurnedLinear
from ecoformer.ops.codes.folded import Affine
from ecoformer.ops.codes.powers import nearest_powers, powers, straight_through_powers


class PowerLinear(CodedLinear):
    """x times the signed powers of two that are nearest to `weight`, plus the bias.

    Its codes are `signs` and `exponents`, (F, D), int8. `product_kind` is what the paper's accounting books a product
    of it as.
    """

    product_kind: ClassVar[str] = "shift"
    signs: Tensor
    exponents: Tensor
    straight_through = staticmethod(straight_through_powers)

    @staticmethod
    def nearest(weight_FD: Tensor) -> dict[str, Tensor]:
        signs_FD, exponents_FD = nearest_powers(weight_FD)
        return {"signs": signs_FD.to(torch.int8), "exponents": exponents_FD.to(torch.int8)}

    def coded(self) -> Affine:
        return Affine(powers(self.signs, self.exponents), self.bias)


class TurnedPowerLinear(TurnedLinear, PowerLinear):
    """The same with the turns of a TurnedLinear, whose forward turns what that of a PowerLinear gives."""


def with_powers(linear: nn.Linear) -> PowerLinear:
    """A PowerLinear with the parameters of a Linear, trainable and turned as they are."""
    if isinstance(linear, TurnedLinear):
        made: PowerLinear = TurnedPowerLinear(linear, list(linear.turns))
    else:
        made = PowerLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
    made.register_codes()
    return made.train(linear.training)


@torch.no_grad()
def without_powers(linear: Any) -> Any:
    """A Linear with the weight that a PowerLinear runs, trainable and turned as that is; anything else as it is."""
    if not isinstance(linear, PowerLinear):
        return linear
    plain = linear_rows(linear, 0, linear.out_features)
    plain.weight.copy_(linear.affine().weight)
    return plain
