"""The attention layer that a replacement learns from. Shapes: B batch, N tokens, D model channels."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.nn.base import before_projection
from ecoformer.ops.distilled_attention import Affine


@dataclass(frozen=True)
class Teacher:
    """A replaced layer, its query and key projections, and whether its values have to be found anew.

    No module: the model that holds it neither moves, trains nor saves it.
    """

    layer: nn.Module
    query: Affine
    key: Affine
    fits_values: bool

    @torch.no_grad()
    def output(self, x_BND: Tensor, feat_size: Any, batch_size: int) -> Tensor:
        """What the layer hands to its output projection, (B, N, D), in x's precision and on its device.

        The layer runs as it is, in evaluation mode and batch by batch; timm's layers and ours use fused attention,
        so no N x N matrix is kept.
        """
        layer = copy.deepcopy(self.layer).to(x_BND).eval()
        args = () if feat_size is None else (feat_size,)
        return torch.cat([before_projection(layer, x, *args) for x in x_BND.split(batch_size)])
