"""How a projected token becomes a code: bits, or powers of two. Shapes: any, elementwise.

Both are thresholds of one real number a feature. What a code says of "much more" is its number of levels: two for a
bit, one for each exponent of a power of two, by which a sum multiplies by adding exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ecoformer.ops.codes.attention import soft_step, straight_through_step
from ecoformer.ops.ecoformer.codes import is_differentiated


class CodeForm(Protocol):
    """From real numbers to codes of their dtype, differentiable by the straight-through estimator."""

    def __call__(self, y: Tensor, slope: float | None = None) -> Tensor:
        """Codes of y, whose memory they may take where no gradient is asked for.

        With a slope, soft codes for a fit that anneals, in forms that know them.
        """
        ...


@dataclass(frozen=True)
class Bits:
    """1 where y >= 0, else 0; soft codes are sigmoid(slope y)."""

    def __call__(self, y: Tensor, slope: float | None = None) -> Tensor:
        if slope is not None:
            return soft_step(y, slope)
        return straight_through_step(y) if is_differentiated(y) else y.ge_(0)


BITS = Bits()


@dataclass(frozen=True)
class Shifts:
    """2^e with e the whole number next to y, within low and high. There are no soft codes: a step is one level.

    The exponent's gradient passes where y lies within the range.
    """

    low: int
    high: int

    @classmethod
    def of(cls, levels: int) -> Shifts:
        """So many exponents around zero: 32 are -16 to 15."""
        return cls(-(levels // 2), levels - levels // 2 - 1)

    def sum_bits(self, num_terms: int) -> int:
        """Bits of an integer that holds any sum of so many shifted signed bytes, with no bit of one lost."""
        return 8 + (self.high - self.low) + (num_terms - 1).bit_length()

    def __call__(self, y: Tensor, slope: float | None = None) -> Tensor:
        if is_differentiated(y):
            held = y.clamp(self.low, self.high)
            return torch.exp2(held + (held.round() - held).detach())
        return y.round_().clamp_(self.low, self.high).exp2_()
