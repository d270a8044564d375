"""Hedgehog: linear attention on features that are fitted to give softmax attention's weights.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, F = 2 C features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.taught import TaughtAttention, TaughtSpec
from ecoformer.nn.base import attention_kind
from ecoformer.nn.heads import as_attn_mask, without_padding
from ecoformer.nn.projections import Projections, read_projections
from ecoformer.ops.codes.distilled import Standardiser
from ecoformer.ops.codes.fitted import Attends
from ecoformer.ops.ecoformer.codes import sign
from ecoformer.ops.linear.attention import linear_attention, linear_attention_weights
from ecoformer.ops.precision import full_precision, without_autocast

LEAST = 1e-12  # of a feature, so that no query is without keys: as in the authors' code


@dataclass(frozen=True)
class HedgehogSpec(TaughtSpec):
    """phi(q) (phi(k)^T v) / (phi(q) . sum phi(k)) with phi(x) = softmax(y), softmax(-y) of y = W x + b.

    Zhang et al., "The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry", ICLR 2024: W and b
    of a head's queries, and of its keys, start at identity and 0 and are fitted layer by layer to the cross entropy of
    softmax attention's weights and these, the paper's attention distillation. The paper's phi is exp(y), exp(-y); its
    form against overflow, which the authors' code has, is a softmax of each over the channels. Training goes on with W
    and b. Behind a projection they could be folded into it; as in the paper they are not.

    Args:
        fit_values: "false": the values are those of the replaced layer.
    """

    name = "hedgehog"

    fit_values: Literal["auto", "true", "false"] = "false"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit_values != "false":
            raise InputError(f"attention.fit_values={self.fit_values}: hedgehog keeps the values, leave it out")

    def is_met_by(self, module: nn.Module) -> bool:
        """What is fitted stays so: the settings of the fit no longer matter then."""
        return isinstance(module, HedgehogAttention) and (module.spec == self or module.is_fitted)


@dataclass(frozen=True)
class FeatureMaps(Attends):
    """W and b of all heads' queries (0) and keys (1)."""

    fitted = ("weight_H2CC", "bias_H2C")

    weight_H2CC: Tensor
    bias_H2C: Tensor

    def mapped(self, q_BHNC: Tensor, k_BHNC: Tensor) -> tuple[Tensor, Tensor]:
        """y of queries and of keys, (B, H, N, C)."""
        y_q, y_k = (
            torch.matmul(x, self.weight_H2CC[:, i].transpose(-2, -1)) + self.bias_H2C[:, i, None]
            for i, x in enumerate((q_BHNC, k_BHNC))
        )
        return y_q, y_k

    def features(self, q_BHNC: Tensor, k_BHNC: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """phi of queries and of keys, (B, H, N, F); 0 of keys that take no part."""
        phi_q, phi_k = (
            torch.cat([y.softmax(dim=-1), (-y).softmax(dim=-1)], dim=-1).clamp_min(LEAST)
            for y in self.mapped(q_BHNC, k_BHNC)
        )
        return phi_q, without_padding(phi_k, mask_BN)

    def signed_codes(self, q_BHNC: Tensor, k_BHNC: Tensor, *unused: Tensor) -> Tensor:
        """The sign of y, of queries, then of keys along B: which half of phi says more."""
        return sign(torch.cat(self.mapped(q_BHNC, k_BHNC)))

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """The attention output (B, H, N, C), linear in the tokens."""
        return linear_attention(*self.features(q_BHNC, k_BHNC, mask_BN), v_BHNC)


def weight_sums(maps: FeatureMaps, q_BHNC: Tensor, k_BHNC: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    """What a fit lowers: the cross entropy -sum_j p_ij log w_ij of softmax attention's weights p and these, w.

    Summed over samples and tokens, (H,), and the number of these. `others` are values, a mask if any, and the target.
    """
    mask_BN = others[1] if len(others) == 3 else None
    mask, scores_BHNN = as_attn_mask(mask_BN), q_BHNC @ k_BHNC.transpose(-2, -1) * q_BHNC.shape[-1] ** -0.5
    target_BHNN = (scores_BHNN if mask is None else scores_BHNN.masked_fill(~mask, -math.inf)).softmax(dim=-1)
    found_BHNN = linear_attention_weights(*maps.features(q_BHNC, k_BHNC, mask_BN))
    likely_BHNN = target_BHNN * found_BHNN.clamp_min(torch.finfo(found_BHNN.dtype).tiny).log()
    entropy_H = -without_padding(likely_BHNN, mask_BN).sum(dim=(0, 2, 3))
    num_tokens = q_BHNC[:, 0, :, 0].numel() if mask_BN is None else mask_BN.sum()
    return entropy_H, torch.ones_like(entropy_H) * num_tokens


@attention_kind(HedgehogSpec)
class HedgehogAttention(TaughtAttention):
    """Linear attention on fitted features of queries and keys, in float32 whatever the autocast.

    `feature_weight` holds W, (H, 2, C, C), and `feature_bias` b, flat, for queries and for keys of each head. The
    objective of a fit is the cross entropy, in nats, to the softmax attention of the layer's own queries and keys; its
    errors are those of the output against the replaced layer's, whatever its attention is.
    """

    parts: Mapping[str, str] = {"query": "to_q", "key": "to_k", "value": "to_v", "proj": "proj"}
    needs_keys = "to fit {} to"
    new_parts = ("feature_weight", "feature_bias")
    takes_mask = True
    shows_codes = True
    fit_sums = staticmethod(weight_sums)

    def add_parts(self, source: Projections | None) -> None:
        super().add_parts(source)
        like = self.proj.weight
        eye_CC = torch.eye(self.head_dim, device=like.device, dtype=like.dtype)
        self.feature_weight = nn.Parameter(eye_CC.repeat(self.num_heads, 2, 1, 1))
        # One dimension: timm's optimizers decay nothing of one dimension.
        self.feature_bias = nn.Parameter(like.new_zeros(self.num_heads * 2 * self.head_dim))

    @property
    def num_bits(self) -> int:
        """Of `signed_codes`."""
        return self.head_dim

    def _maps(self, dtype: torch.dtype) -> FeatureMaps:
        bias_H2C = self.feature_bias.to(dtype).view(self.num_heads, 2, self.head_dim)
        return FeatureMaps(self.feature_weight.to(dtype), bias_H2C)

    def attend(self, q_BHNC: Tensor, k_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Raises InputError if the features were never fitted."""
        self.require_fitted()
        with without_autocast(v_BHNC):
            q, k, v = (full_precision(x) for x in (q_BHNC, k_BHNC, v_BHNC))
            return self._maps(v.dtype).attend(q, k, v, mask_BN).to(v_BHNC.dtype)

    def _full_heads(self, x_BND: Tensor) -> list[Tensor]:
        return [full_precision(x) for x in self.heads(x_BND.to(self.proj.weight.dtype))]

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        self.require_fitted()
        q_BHNC, k_BHNC, _ = self._full_heads(x_BND)
        return linear_attention_weights(*self._maps(q_BHNC.dtype).features(q_BHNC, k_BHNC))

    def signed_codes(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        with without_autocast(x_BND):
            q_BHNC, k_BHNC, _ = self._full_heads(full_precision(x_BND))
            return self._maps(q_BHNC.dtype).signed_codes(q_BHNC, k_BHNC)

    def start(self, x_BND: Tensor, *unused: Any) -> FeatureMaps:
        """A copy of the maps as they are: identity until they are fitted."""
        maps = self._maps(x_BND.dtype)
        return FeatureMaps(maps.weight_H2CC.detach().clone(), maps.bias_H2C.detach().clone())

    def store(self, fitted: FeatureMaps, *unused: Any) -> None:
        self.feature_weight.copy_(fitted.weight_H2CC)
        self.feature_bias.copy_(fitted.bias_H2C.flatten())

    def standard_of(self, x_BND: Tensor) -> Standardiser:
        """They stay as they are."""
        return Standardiser(torch.zeros_like(x_BND[0, 0]), torch.ones_like(x_BND[0, 0]))

    def fit_inputs(self, x_BND: Tensor, v_BHNC: Tensor | None) -> list[Tensor | None]:
        """Its own queries, keys and values."""
        return [*self._full_heads(x_BND)]

    def projections(self, where: str) -> Projections:
        """Its own, or before the fit those of the layer that it is to learn from, so that another can learn from it."""
        return super().projections(where) if self.teacher is None else read_projections(self.teacher.layer, where)

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core, accounted as the paper accounts EcoFormer.

        Per head and token, both: 2 C^2 for W q and W k; 2 C F for k^T v and q times it, F for q times the sum of keys.
        Multiplications: 2 F for the features, one each as for each of softmax's weights, and C for the division.
        Additions: F for b, and F for the sum of keys. As in the paper's softmax, exp and its sums are free.
        """
        channels, features = self.head_dim, 2 * self.head_dim
        both = 2 * channels**2 + 2 * channels * features + features
        muls, adds = both + 2 * features + channels, both + 2 * features
        return self.num_heads * num_tokens * muls, self.num_heads * num_tokens * adds
