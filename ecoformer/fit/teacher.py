"""A replaced attention layer as the teacher of the one that takes its place.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.target import AttentionTarget, SoftmaxTarget
from ecoformer.nn.base import before_projection, given
from ecoformer.nn.coded import CodedLinear
from ecoformer.nn.heads import split_heads, token_mean
from ecoformer.nn.msa import MSASpec, MultiHeadSelfAttention
from ecoformer.nn.projections import Projections
from ecoformer.nn.turned import TurnedLinear
from ecoformer.ops.closeness import batches
from ecoformer.ops.codes.folded import Affine


@dataclass(frozen=True)
class Teacher:
    """A replaced layer, its projections, and whether its values have to be found anew.

    `is_softmax`: of all tokens, by these queries and keys as they are.

    No module: the model that holds it neither moves, trains nor saves it.
    """

    layer: nn.Module
    query: Affine
    key: Affine
    value: Affine
    num_heads: int
    fits_values: bool
    is_softmax: bool

    @classmethod
    def of(cls, source: Projections, kind: str, fit_values: str) -> Teacher:
        """The layer that `source` was read from. Raises InputError if `kind` cannot be fitted to it."""
        if source.key is None:
            raise InputError(
                f"{source.where}: a shared query and key projection is no attention to fit {kind} to: start from the "
                "MSA or the stock checkpoint"
            )
        layer = source.layer or MultiHeadSelfAttention.from_projections(source, MSASpec())
        attend = getattr(type(layer), "attend", None)
        sums_all = MSASpec().is_met_by(layer) or attend is MultiHeadSelfAttention.attend  # msa_shift's, too
        fits_values = not sums_all if fit_values == "auto" else fit_values == "true"
        if fits_values and source.value.bias is None:
            raise InputError(f"{source.where} has values without a bias: set attention.fit_values=false")
        is_softmax = sums_all and not any(isinstance(x, TurnedLinear) for x in (source.query, source.key))
        with torch.no_grad():  # weights of some are computed from others
            query, key, value = (affine(linear) for linear in (source.query, source.key, source.value))
        return cls(layer, query, key, value, source.num_heads, fits_values, is_softmax)

    @torch.no_grad()
    def target(self, x_BND: Tensor, feat_size: Any, mask_BN: Tensor | None, batch_size: int) -> AttentionTarget:
        """What the layer hands to its output projection for these tokens, in batches of `batch_size`."""
        softmax, v_BND = None, self.value.like(x_BND)(x_BND)
        if self.is_softmax:
            projected = (self.query.like(x_BND)(x_BND), self.key.like(x_BND)(x_BND), v_BND)
            q_BHNC, k_BHNC, v_BHNC = (split_heads(y_BND, self.num_heads) for y_BND in projected)
            softmax = SoftmaxTarget(q_BHNC, k_BHNC, v_BHNC, mask_BN)
        # Batch by batch, in x's precision and on its device; timm's layers and ours use fused attention, so no N x N
        # matrix is kept.
        layer = copy.deepcopy(self.layer).to(x_BND).eval()
        output_BND = _run(layer, x_BND, feat_size, mask_BN, batch_size)
        # Attention that knows nothing has equal weights for all of the layer's own keys: those of a subsampled map
        # (SRA, GSA) are averaged as they are, by queries of zero; elsewhere it is the mean of all tokens' values.
        if isinstance(getattr(layer, "q", None), nn.Module):
            for parameter in layer.get_submodule("q").parameters():
                parameter.zero_()
            uniform_BND = _run(layer, x_BND, feat_size, mask_BN, batch_size)
        else:
            uniform_BND = token_mean(v_BND, mask_BN).expand_as(v_BND)
        return AttentionTarget(output_BND, uniform_BND, softmax)


def _run(layer: nn.Module, x_BND: Tensor, feat_size: Any, mask_BN: Tensor | None, batch_size: int) -> Tensor:
    parts = batches(batch_size, x_BND, mask_BN)
    return torch.cat([before_projection(layer, x, **given(feat_size=feat_size, mask_BN=mask)) for x, mask in parts])


def affine(linear: nn.Linear) -> Any:
    """What a Linear computes, for `ops`: its tensors, or its codes."""
    return linear.affine() if isinstance(linear, CodedLinear) else Affine(linear.weight, linear.bias)


def store_affine(linear: nn.Linear, new: Affine) -> None:
    linear.weight.copy_(new.weight)
    if new.bias is not None:
        linear.bias.copy_(new.bias)
    if isinstance(linear, CodedLinear):
        linear.settle()
