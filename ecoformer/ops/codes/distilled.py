"""Fit codes computed from tokens to an attention output, and fold them into one projection.

While they are fitted, tokens are standardised per channel, so that one learning rate suits all channels, and weights of
the values are held relative to their size, so that it suits them too. Shapes: B batch, H heads, N tokens, C head
channels, D model channels, K code bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecoformer.ops.codes.attention import binary_attention
from ecoformer.ops.codes.fitted import Attends, Fitted
from ecoformer.ops.codes.folded import Affine
from ecoformer.ops.codes.forms import BITS, CodeForm

START_FLOOR = 1.0  # as much as a bit's weight: fits that start with less end further from their target
START_SLOPE, END_SLOPE = 2.0, 40.0  # of soft codes: found by measurement, and flat around it


def annealed_slope(done: float) -> float:
    """The slope of soft codes once a share `done` of a fit is over: geometric, from 2 to 40.

    Bits are thresholds of values that start with a deviation of 1, so that codes are blurred at first and all but hard
    at the end. Continuation of this kind: Cao et al., HashNet, ICCV 2017.
    """
    return START_SLOPE * (END_SLOPE / START_SLOPE) ** done


@dataclass(frozen=True)
class Standardiser:
    """x to (x - mean) / deviation per channel, and the way back for what was fitted behind it."""

    mean_D: Tensor
    deviation_D: Tensor

    @classmethod
    def of(cls, x_BND: Tensor) -> Standardiser:
        deviation_D, mean_D = torch.std_mean(x_BND, dim=(0, 1), correction=0)
        # A channel that is the same everywhere tells nothing, and must not be blown up.
        return cls(mean_D, torch.where(deviation_D > 1e-6, deviation_D, 1.0))

    def __call__(self, x_BND: Tensor) -> Tensor:
        return (x_BND - self.mean_D) / self.deviation_D

    def unfold(self, affine: Affine) -> Affine:
        """For standardised tokens, what `affine` is for tokens as they are."""
        shift = affine.weight @ self.mean_D
        return Affine(affine.weight * self.deviation_D, shift if affine.bias is None else affine.bias + shift)

    def fold(self, affine: Affine) -> Affine:
        """For tokens as they are, what `affine` is for standardised ones."""
        weight = affine.weight / self.deviation_D
        assert affine.bias is not None
        return Affine(weight, affine.bias - weight @ self.mean_D)


@dataclass(frozen=True)
class Rounding:
    """Rounds weights of standardised tokens, (F, D), to what is `nearest` to them for the tokens as they were.

    `nearest` passes the gradient on; `deviation_D` is that of the tokens before they were standardised.
    """

    nearest: Callable[[Tensor], Tensor]
    deviation_D: Tensor

    def __call__(self, weight_FD: Tensor) -> Tensor:
        return self.nearest(weight_FD / self.deviation_D) * self.deviation_D


@dataclass(frozen=True)
class FittedValues(Fitted):
    """A projection of standardised tokens to values while it is fitted: `weight_HCD` and `bias_HC` times `size_H`.

    `rounding` is that of all its weights, None: they are as they are.
    """

    fitted = ("weight_HCD", "bias_HC")

    weight_HCD: Tensor
    bias_HC: Tensor
    size_H: Tensor
    rounding: Rounding | None = None

    @classmethod
    def of(cls, value: Affine, num_heads: int, rounding: Rounding | None = None) -> FittedValues:
        """From a projection of standardised tokens, which has a bias."""
        assert value.bias is not None
        weight_HCD, bias_HC = (t.unflatten(0, (num_heads, -1)) for t in (value.weight, value.bias))
        size_H = weight_HCD.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-6)
        return cls(weight_HCD / size_H[:, None, None], bias_HC / size_H[:, None], size_H, rounding)

    @property
    def affine(self) -> Affine:
        """As one projection of standardised tokens, (D, D)."""
        size_H11 = self.size_H[:, None, None]
        weight_DD = (self.weight_HCD * size_H11).flatten(0, 1)
        if self.rounding is not None:
            weight_DD = self.rounding(weight_DD)
        return Affine(weight_DD, (self.bias_HC * size_H11[..., 0]).flatten())

    def __call__(self, x_BND: Tensor) -> Tensor:
        """The values (B, H, N, C)."""
        return self.affine(x_BND).unflatten(-1, self.bias_HC.shape).transpose(1, 2)


@dataclass(frozen=True)
class DistilledHash(Attends):
    """All that turns standardised tokens into an attention output: projections to codes, their weights, the floor.

    `weight_HK` None: all 1, and left so; a power of two is weighted by its exponent's bias. With `values` these are
    fitted too; without, they are given with each batch. `rounding` is that of the projections' weights, None: they are
    as they are.
    """

    fitted = ("query_HKD", "query_bias_HK", "key_HKD", "key_bias_HK", "weight_HK", "floor_H", "values")

    query_HKD: Tensor
    query_bias_HK: Tensor
    key_HKD: Tensor
    key_bias_HK: Tensor
    weight_HK: Tensor | None
    floor_H: Tensor
    values: FittedValues | None = None
    form: CodeForm = BITS
    rounding: Rounding | None = None

    def codes(self, x_BND: Tensor, slope: float | None = None) -> tuple[Tensor, Tensor]:
        """Codes of queries and keys, (B, H, N, K) each; soft ones with a slope."""
        codes_BNT = self.form(self.to_codes(x_BND), slope)
        code_q_BHNK, code_k_BHNK = codes_BNT.unflatten(-1, (2, *self.query_bias_HK.shape)).permute(2, 0, 3, 1, 4)
        return code_q_BHNK, code_k_BHNK

    def signed_codes(self, x_BND: Tensor, *values: Tensor | None) -> Tensor:
        """Of queries, then keys along B, (2B, H, N, K): +1 where what a code is made of is at least 0, else -1."""
        return torch.cat([2 * code_BHNK - 1 for code_BHNK in replace(self, form=BITS).codes(x_BND)])

    def attend(
        self, x_BND: Tensor, v_BHNC: Tensor | None = None, mask_BN: Tensor | None = None, slope: float | None = None
    ) -> Tensor:
        """The attention output (B, H, N, C), of soft codes with a slope."""
        if v_BHNC is None:
            assert self.values is not None
            v_BHNC = self.values(x_BND)
        return binary_attention(*self.codes(x_BND, slope), v_BHNC, self.weight_HK, self.floor_H, mask_BN)

    @property
    def to_codes(self) -> Affine:
        """The codes of queries, then of keys, as one projection of standardised tokens."""
        weight_TD = torch.cat([self.query_HKD.flatten(0, 1), self.key_HKD.flatten(0, 1)])
        if self.rounding is not None:
            weight_TD = self.rounding(weight_TD)
        return Affine(weight_TD, torch.cat([self.query_bias_HK.flatten(), self.key_bias_HK.flatten()]))


def random_distilled_hash(
    x_BND: Tensor,
    query: Affine,
    key: Affine,
    num_heads: int,
    num_codes: int,
    generator: torch.Generator,
    *,
    weighted: bool = True,
) -> DistilledHash:
    """Random codes of these standardised tokens, each with mean 0 and deviation 1 before it becomes one: a fit's start.

    A code is a random direction among a head's queries, and the same direction among its keys, so that a query and a
    key that are similar tend to agree: `query` and `key` are the replaced attention's projections. `generator` is a
    CPU generator, so that the draw is the same on every device. `weighted`: codes have weights.
    """
    channels = query.weight.shape[0] // num_heads
    A_HKC = torch.randn(num_heads, num_codes, channels, generator=generator).to(x_BND)
    codes: list[tuple[Tensor, Tensor]] = []
    for projection in (query, key):
        weight_HKD = A_HKC @ projection.weight.unflatten(0, (num_heads, channels))
        y_BHNK = torch.einsum("bnd,hkd->bhnk", x_BND, weight_HKD)
        deviation_HK, mean_HK = torch.std_mean(y_BHNK, dim=(0, 2), correction=0)
        scale_HK = torch.where(deviation_HK > 1e-6, deviation_HK, 1.0).reciprocal()
        codes.append((weight_HKD * scale_HK.unsqueeze(-1), -mean_HK * scale_HK))
    weight_HK = x_BND.new_ones(num_heads, num_codes) if weighted else None
    return DistilledHash(*codes[0], *codes[1], weight_HK, x_BND.new_full((num_heads,), START_FLOOR))
