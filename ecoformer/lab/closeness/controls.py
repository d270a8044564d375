"""What a distilled hash has to beat: attention without any codes, its values fitted to the same target.

A model that loses nothing with these in place does not need its attention, and its top-1 is no evidence for a hash.
Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.fit.taught import TaughtAttention, TaughtSpec
from ecoformer.fit.teacher import Teacher, affine, store_affine
from ecoformer.nn.base import attention_kind
from ecoformer.ops.codes.distilled import FittedValues, Standardiser
from ecoformer.ops.codes.folded import Affine


@dataclass(frozen=True)
class ControlSpec(TaughtSpec):
    """No attention: "uniform" gives every token the mean of all values, "none" its own value.

    Not registered: nobody should train with it by name.
    """

    fit_values: Literal["auto", "true", "false"] = "true"
    mode: Literal["uniform", "none"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("uniform", "none"):
            raise InputError(f"control {self.mode!r} does not exist: choose uniform or none")
        if self.fit_values != "true":
            raise InputError(f"a control fits its values: fit_values={self.fit_values!r} must be true")


@dataclass(frozen=True)
class _Values:
    """Fitted values, and whether their mean over the tokens is taken."""

    values: FittedValues
    uniform: bool

    def attend(self, x_BND: Tensor) -> Tensor:
        v_BHNC = self.values(x_BND)
        return v_BHNC.mean(dim=2, keepdim=True).expand_as(v_BHNC) if self.uniform else v_BHNC

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.values.weight_HCD, self.values.bias_HC)

    def positive(self) -> list[bool]:
        return [False, False]

    def with_tensors(self, tensors: Iterator[Tensor]) -> _Values:
        weight_HCD, bias_HC = tensors
        return replace(self, values=replace(self.values, weight_HCD=weight_HCD, bias_HC=bias_HC))


@attention_kind(ControlSpec)
class ControlAttention(TaughtAttention):
    """The mean of all values, or each token's own, with values fitted to the attention that it replaces."""

    spec: ControlSpec

    def attend(self, v_BHNC: Tensor) -> Tensor:
        self.require_fitted()
        return v_BHNC.mean(dim=2, keepdim=True).expand_as(v_BHNC) if self.spec.mode == "uniform" else v_BHNC

    def start(self, x_BND: Tensor, standard: Standardiser, generator: torch.Generator, teacher: Teacher) -> _Values:
        value: Affine = standard.unfold(affine(self.to_v).like(x_BND))
        return _Values(FittedValues.of(value, self.num_heads), self.spec.mode == "uniform")

    def store(self, fitted: _Values, standard: Standardiser, x_BND: Tensor) -> None:
        store_affine(self.to_v, standard.fold(fitted.values.affine))
