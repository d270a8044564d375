"""What a fit was worth on images that it did not see, beside a random hash and uniform attention.

Shapes: B batch, H heads, N tokens, D model channels, K code bits.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ecoformer.fit.hashes import FittableAttention, NoFiniteImages, bit_statistics
from ecoformer.fit.target import AttentionTarget
from ecoformer.nn.base import ReplacementAttention
from ecoformer.ops.closeness import relative_error, row_correlation, strongest_key_recall

NUM_KEYS = 8  # strongest keys of a token that a good hash finds
MAP_IMAGES = 2  # recall and correlation need N x N weights, so they look at few images,
MAP_ENTRIES = 2**25  # and at none whose H maps have more entries


@dataclass(frozen=True)
class HeldOutMeasure:
    """What has to be known before a fit: held-out inputs, their target, the codes so far, and the random floor."""

    x_BND: Tensor
    target: AttentionTarget | None
    codes_BHNK: Tensor | None
    random: FittableAttention | None

    @classmethod
    def before_fit(
        cls,
        layer: FittableAttention,
        fit_BND: Tensor,
        x_BND: Tensor,
        others: Sequence[Any],
        generator: torch.Generator,
    ) -> HeldOutMeasure | None:
        """Take it from a layer that is about to be fitted to `fit_BND`, and measured on `x_BND`.

        `others` is what else the layer is called with.

        `generator` is that of the fit; it is not advanced. None if the inputs are not finite: nothing can be measured.
        """
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
        if self.target is None:
            return found
        assert isinstance(layer, ReplacementAttention) and isinstance(self.random, ReplacementAttention)
        target_BND = self.target.output()
        found["attention_error"] = relative_error(layer.attention_output(self.x_BND), target_BND)
        found["random_error"] = relative_error(self.random.attention_output(self.x_BND), target_BND)
        found["uniform_error"] = relative_error(self.target.uniform_output(), target_BND)
        found["recall"], found["correlation"] = _maps(layer, self.target, self.x_BND)
        found["random_recall"], found["random_correlation"] = _maps(self.random, self.target, self.x_BND)
        num_tokens = self.x_BND.shape[1]
        found["chance_recall"] = _num_keys(num_tokens) / num_tokens
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


def _num_keys(num_tokens: int) -> int:
    return max(1, min(NUM_KEYS, num_tokens // 2))


def _maps(layer: ReplacementAttention, target: AttentionTarget, x_BND: Tensor) -> tuple[float | None, float | None]:
    """Recall and correlation, one image and head at a time; None where the maps are too large, or there are none."""
    num_tokens = x_BND.shape[1]
    if layer.num_heads * num_tokens**2 > MAP_ENTRIES or target.weights(0, 0) is None:
        return None, None
    recalls, correlations = [], []
    for image in range(min(MAP_IMAGES, len(x_BND))):
        weights_1HNN = layer.attention_weights(x_BND[image : image + 1])
        for head in range(layer.num_heads):
            expected_11NN = target.weights(image, head)
            assert expected_11NN is not None
            pair = weights_1HNN[:, head : head + 1], expected_11NN
            recalls.append(strongest_key_recall(*pair, _num_keys(num_tokens)))
            correlations.append(row_correlation(*pair))
    return sum(recalls) / len(recalls), sum(correlations) / len(correlations)
