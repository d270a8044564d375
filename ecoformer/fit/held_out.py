"""What a fit was worth on images that it did not see, beside a random hash and uniform attention.

Shapes: B batch, H heads, N tokens, D model channels, K code bits.
"""

import copy
import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ecoformer.fit.compare import compare
from ecoformer.fit.contract import FittableAttention, HashFitReport, NoFiniteImages, code_figures, nothing_fitted
from ecoformer.nn.base import given

MAP_IMAGES = 2  # recall and correlation need N x N weights, so they look at few images,
MAP_ENTRIES = 2**25  # and at none whose H maps have more entries


def fit_and_measure(
    layer: FittableAttention,
    x_BND: Tensor,
    num_images: int,
    generator: torch.Generator,
    feat_size: Any = None,
    mask_BN: Tensor | None = None,
) -> HashFitReport:
    """Fit a layer to the first images of `x_BND` and measure it on the others, if there are any.

    The report says how long the fit took, without the measuring. `feat_size` and `mask_BN` are what else the layer is
    called with. A layer that has fitted functions keeps them where no image gives finite features. Raises
    NoFiniteImages where it has none.
    """
    x_BND, held_out_BND = x_BND[:num_images], x_BND[num_images:]
    finite_B = held_out_BND.isfinite().flatten(1).all(dim=1)
    held_out_BND = held_out_BND[finite_B]
    fit_mask, held_mask = (None, None) if mask_BN is None else (mask_BN[:num_images], mask_BN[num_images:][finite_B])
    size, mask = given(feat_size=feat_size), given(mask_BN=held_mask)
    random, target, old_codes_BHNK = None, None, None
    if len(held_out_BND):  # what the fit changes or forgets
        random = _with_random_hash(layer, x_BND, generator, fit_mask)
        target = None if random is None else layer.target(held_out_BND, **size, **mask)
        shown = layer if layer.shows_codes and layer.is_fitted else random
        old_codes_BHNK = None if shown is None else shown.signed_codes(held_out_BND, **mask)
    started = time.perf_counter()
    try:
        report = layer.fit_on_call(x_BND, generator, **size, **given(mask_BN=fit_mask))
    except NoFiniteImages:
        if not layer.is_fitted:
            raise
        return nothing_fitted(layer, len(x_BND))
    found: dict[str, Any] = {"seconds": time.perf_counter() - started, "held_out_images": len(held_out_BND)}
    if old_codes_BHNK is not None:
        found |= code_figures(old_codes_BHNK, layer.signed_codes(held_out_BND, **mask), held_mask)
    if target is not None:
        limits: dict[str, Any] = {"map_images": MAP_IMAGES, "map_entries": MAP_ENTRIES}
        found |= asdict(compare(layer, target, held_out_BND, random=random, **limits, **mask))
    return replace(report, **found)


def _with_random_hash(
    layer: FittableAttention, fit_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None
) -> FittableAttention | None:
    """A copy with random hash functions that shares what a fit leaves alone; None for kinds without codes to show.

    `generator` is not advanced.
    """
    if not layer.shows_codes:
        return None
    shared = {} if layer.fits_parameters else {id(parameter): parameter for parameter in layer.parameters()}
    twin = copy.deepcopy(layer, shared)
    same = torch.Generator()
    same.set_state(generator.get_state())
    try:
        twin.draw_random_hash(fit_BND, same, **given(mask_BN=mask_BN))
    except NoFiniteImages:  # the fit will say so
        return None
    return twin
