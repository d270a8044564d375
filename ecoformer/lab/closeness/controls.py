"""What codes have to beat: random hash functions, and attention without any codes.

A model that loses nothing without attention does not need it, and its top-1 is no evidence for a hash.
Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.taught import TaughtAttention, TaughtSpec
from ecoformer.fit.teacher import Teacher, affine, store_affine
from ecoformer.kinds.uniform import UniformSpec
from ecoformer.model.convert import convert
from ecoformer.nn.base import attention_kind
from ecoformer.nn.heads import token_mean
from ecoformer.nn.specs import AttentionSpec
from ecoformer.ops.codes.distilled import FittedValues, Standardiser
from ecoformer.ops.codes.fitted import Attends

RANDOM = "random-"


def random_hash(spec: AttentionSpec) -> AttentionSpec:
    """The same attention with hash functions as they are drawn. Raises InputError for a kind that fits none."""
    no_steps = {f.name: 0 for f in fields(spec) if f.name in ("fit_steps", "joint_steps")}
    if not no_steps:
        raise InputError(f"attention={spec.name} has no hash functions to leave random: drop '{RANDOM}'")
    return replace(spec, **no_steps)


def uniform_copy(msa: nn.Module) -> nn.Module:
    """The model with the mean of all values, as they are, in the layers that a conversion replaces by default."""
    model = copy.deepcopy(msa)
    convert(model, UniformSpec())
    return model.eval()


@dataclass(frozen=True)
class ControlSpec(TaughtSpec):
    """No attention: "uniform" gives every token the mean of all values, "none" its own; the values are fitted.

    Not registered: nobody should train with it by name.
    """

    fit_values: Literal["auto", "true", "false"] = "true"
    mode: Literal["uniform", "none"] = "uniform"

    @classmethod
    def like(cls, spec: TaughtSpec, mode: Literal["uniform", "none"]) -> ControlSpec:
        """A control that is fitted as `spec` is."""
        return cls(mode=mode, **{f.name: getattr(spec, f.name) for f in fields(TaughtSpec) if f.name != "fit_values"})

    def mix(self, v_BHNC: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Their mean for every token, or the values as they are."""
        return token_mean(v_BHNC, mask_BN).expand_as(v_BHNC) if self.mode == "uniform" else v_BHNC


@dataclass(frozen=True)
class _Values(Attends):
    """Values while they are fitted."""

    fitted = ("values",)

    values: FittedValues
    spec: ControlSpec

    def attend(self, x_BND: Tensor, v_BHNC: None = None, mask_BN: Tensor | None = None) -> Tensor:
        return self.spec.mix(self.values(x_BND), mask_BN)


@attention_kind(ControlSpec)
class ControlAttention(TaughtAttention):
    """The mean of all values, or each token's own, with values fitted to the attention that it replaces."""

    takes_mask = True
    spec: ControlSpec

    def attend(self, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        self.require_fitted()
        return self.spec.mix(v_BHNC, mask_BN)

    def start(self, x_BND: Tensor, standard: Standardiser, generator: torch.Generator, teacher: Teacher) -> _Values:
        return _Values(FittedValues.of(standard.unfold(affine(self.to_v).like(x_BND)), self.num_heads), self.spec)

    def store(self, fitted: _Values, standard: Standardiser, x_BND: Tensor) -> None:
        store_affine(self.to_v, standard.fold(fitted.values.affine))
