"""What a fit was worth on images that it did not see, beside a random hash and uniform attention.

Shapes: B batch, H heads, N tokens, D model channels, K code bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ecoformer.fit.compare import compare
from ecoformer.fit.contract import FittableAttention, HashFitReport, NoFiniteImages, bit_statistics, nothing_fitted
from ecoformer.fit.target import AttentionTarget

MAP_IMAGES = 2  # recall and correlation need N x N weights, so they look at few images,
MAP_ENTRIES = 2**25  # and at none whose H maps have more entries


def fit_and_measure(
    layer: FittableAttention, x_BND: Tensor, held_out_BND: Tensor, others: Sequence[Any], generator: torch.Generator
) -> HashFitReport:
    """Fit a layer to `x_BND` and measure it on `held_out_BND`, if there are any; the block name is left to the caller.

    `others` is what else the layer is called with. A layer that has fitted functions keeps them where no image gives
    finite features. Raises NoFiniteImages where it has none.
    """
    before = _Before.fit(layer, x_BND, held_out_BND, others, generator) if len(held_out_BND) else None
    try:
        report = layer.fit_on_call((x_BND, *others), generator)
    except NoFiniteImages:
        if not layer.is_fitted:
            raise
        return nothing_fitted(layer, len(x_BND))
    return report if before is None else replace(report, **before.figures(layer))


@dataclass(frozen=True)
class _Before:
    """What has to be known before a fit: held-out inputs, their target, the codes so far, and the random floor."""

    x_BND: Tensor
    target: AttentionTarget | None
    codes_BHNK: Tensor | None
    random: FittableAttention | None

    @classmethod
    def fit(
        cls,
        layer: FittableAttention,
        fit_BND: Tensor,
        x_BND: Tensor,
        others: Sequence[Any],
        generator: torch.Generator,
    ) -> _Before | None:
        """Take it; `generator` is not advanced. None if the inputs are not finite: nothing can be measured."""
        x_BND = x_BND[x_BND.isfinite().flatten(1).all(dim=1)]
        if not len(x_BND):
            return None
        random = _with_random_hash(layer, fit_BND, generator)
        shown = layer if layer.shows_codes and layer.is_fitted else random
        codes_BHNK = None if shown is None else shown.signed_codes(x_BND)
        return cls(x_BND, None if random is None else layer.target(x_BND, *others), codes_BHNK, random)

    def figures(self, layer: FittableAttention) -> dict[str, Any]:
        """Fields of `HashFitReport`, of the layer as it is fitted now."""
        found: dict[str, Any] = {"held_out_images": len(self.x_BND)}
        if self.codes_BHNK is not None:
            codes_BHNK = layer.signed_codes(self.x_BND)
            found["bit_balance"], found["bit_correlation"] = bit_statistics(codes_BHNK)
            found["flipped_bits"] = float((codes_BHNK != self.codes_BHNK).float().mean())
        if self.target is not None:
            limits = {"map_images": MAP_IMAGES, "map_entries": MAP_ENTRIES}
            found |= asdict(compare(layer, self.target, self.x_BND, random=self.random, **limits))
        return found


def _with_random_hash(
    layer: FittableAttention, fit_BND: Tensor, generator: torch.Generator
) -> FittableAttention | None:
    """A copy with random hash functions that shares what a fit leaves alone; None for kinds without codes to show."""
    if not layer.shows_codes:
        return None
    shared = {} if layer.fits_parameters else {id(parameter): parameter for parameter in layer.parameters()}
    twin = copy.deepcopy(layer, shared)
    same = torch.Generator()
    same.set_state(generator.get_state())
    try:
        twin.draw_random_hash(fit_BND, same)
    except NoFiniteImages:  # the fit will say so
        return None
    return twin
