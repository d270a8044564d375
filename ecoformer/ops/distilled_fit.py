"""Fit codes computed from tokens to an attention output, and fold them into one projection.

While they are fitted, tokens are standardised per channel, so that one learning rate suits all channels, and weights of
the values are held relative to their size, so that it suits them too. Shapes: B batch, H heads, N tokens, C head
channels, D model channels, K code bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ecoformer.ops.binary_attention import binary_attention, straight_through_step
from ecoformer.ops.distilled_attention import Affine

START_FLOOR = 0.1  # of a bit's weight: a query that meets no key still takes the mean of all values


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
class DistilledHash:
    """All that turns standardised tokens into an attention output: thresholds of the bits, their weights, the floor.

    With `value_HCD` the values are fitted too, held divided by `value_size_H`; without it they are given with each
    batch.
    """

    query_HKD: Tensor
    query_bias_HK: Tensor
    key_HKD: Tensor
    key_bias_HK: Tensor
    weight_HK: Tensor
    floor_H: Tensor
    value_HCD: Tensor | None = None
    value_bias_HC: Tensor | None = None
    value_size_H: Tensor | None = None

    def codes(self, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of queries and keys, (B, H, N, K) each, in {0, 1}."""
        query = _per_head(x_BND, self.query_HKD, self.query_bias_HK)
        key = _per_head(x_BND, self.key_HKD, self.key_bias_HK)
        return straight_through_step(query), straight_through_step(key)

    def values(self, x_BND: Tensor) -> Tensor:
        """The fitted values (B, H, N, C)."""
        assert self.value_HCD is not None and self.value_bias_HC is not None and self.value_size_H is not None
        size_H = self.value_size_H
        return _per_head(x_BND, self.value_HCD * size_H[:, None, None], self.value_bias_HC * size_H[:, None])

    def attend(self, x_BND: Tensor, v_BHNC: Tensor | None = None) -> Tensor:
        """The attention output (B, H, N, C)."""
        values = self.values(x_BND) if v_BHNC is None else v_BHNC
        return binary_attention(*self.codes(x_BND), values, self.weight_HK, self.floor_H)

    def tensors(self) -> Iterator[Tensor]:
        yield from (getattr(self, name) for name in self._fitted())

    def positive(self) -> list[bool]:
        return [name in ("weight_HK", "floor_H") for name in self._fitted()]

    def _fitted(self) -> list[str]:
        names = ["query_HKD", "query_bias_HK", "key_HKD", "key_bias_HK", "weight_HK", "floor_H"]
        return names if self.value_HCD is None else [*names, "value_HCD", "value_bias_HC"]

    def with_tensors(self, tensors: Iterator[Tensor]) -> DistilledHash:
        given = dict(zip(self._fitted(), tensors, strict=True))
        return replace(self, **given)

    def with_values(self, value: Affine) -> DistilledHash:
        """The same with values to be fitted, from these; `value` is for standardised tokens and has a bias."""
        num_heads = len(self.floor_H)
        assert value.bias is not None
        weight_HCD, bias_HC = (t.unflatten(0, (num_heads, -1)) for t in (value.weight, value.bias))
        size_H = weight_HCD.square().mean(dim=(1, 2)).sqrt().clamp_min(1e-6)
        return replace(
            self,
            value_HCD=weight_HCD / size_H[:, None, None],
            value_bias_HC=bias_HC / size_H[:, None],
            value_size_H=size_H,
        )

    @property
    def to_codes(self) -> Affine:
        """The bits of queries, then of keys, as one projection of standardised tokens."""
        weights = torch.cat([self.query_HKD.flatten(0, 1), self.key_HKD.flatten(0, 1)])
        return Affine(weights, torch.cat([self.query_bias_HK.flatten(), self.key_bias_HK.flatten()]))

    @property
    def value(self) -> Affine | None:
        """The fitted values as one projection of standardised tokens; None if they are not fitted."""
        if self.value_HCD is None or self.value_bias_HC is None or self.value_size_H is None:
            return None
        size_H = self.value_size_H
        weight, bias = self.value_HCD * size_H[:, None, None], self.value_bias_HC * size_H[:, None]
        return Affine(weight.flatten(0, 1), bias.flatten())


def random_distilled_hash(
    x_BND: Tensor, query: Affine, key: Affine, num_heads: int, num_bits: int, generator: torch.Generator
) -> DistilledHash:
    """Random bits of these standardised tokens, each splitting them near the middle. The start of a fit.

    A bit is a random direction among a head's queries, and the same direction among its keys, so that a query and a
    key that are similar tend to agree: `query` and `key` are the replaced attention's projections. `generator` is a
    CPU generator, so that the draw is the same on every device.
    """
    channels = query.weight.shape[0] // num_heads
    A_HKC = torch.randn(num_heads, num_bits, channels, generator=generator).to(x_BND)
    bits: list[tuple[Tensor, Tensor]] = []
    for projection in (query, key):
        weight_HKD = A_HKC @ projection.weight.unflatten(0, (num_heads, channels))
        y_BHNK = torch.einsum("bnd,hkd->bhnk", x_BND, weight_HKD)
        deviation_HK, mean_HK = torch.std_mean(y_BHNK, dim=(0, 2), correction=0)
        scale_HK = torch.where(deviation_HK > 1e-6, deviation_HK, 1.0).reciprocal()
        bits.append((weight_HKD * scale_HK.unsqueeze(-1), -mean_HK * scale_HK))
    weight_HK = x_BND.new_ones(num_heads, num_bits)
    return DistilledHash(*bits[0], *bits[1], weight_HK, x_BND.new_full((num_heads,), START_FLOOR))


def _per_head(x_BND: Tensor, weight_HRD: Tensor, bias_HR: Tensor) -> Tensor:
    """(B, H, N, R): rows of every head applied to all tokens, as one product."""
    y_BNT = Affine(weight_HRD.flatten(0, 1), bias_HR.flatten())(x_BND)
    return y_BNT.unflatten(-1, bias_HR.shape).transpose(1, 2)
