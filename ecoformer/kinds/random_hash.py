"""EcoFormer's attention with its hash functions as they are drawn: the floor that fitting them has to beat.

Shapes: B batch, N tokens, D model channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.contract import HashFitReport
from ecoformer.kinds.ecoformer import EcoFormerAttention, EcoFormerSpec
from ecoformer.nn.projections import READERS, Projections, register_reader
from ecoformer.nn.specs import AttentionSpec, builds, register_spec


@register_spec("random_hash")
@dataclass(frozen=True)
class RandomHashSpec(AttentionSpec):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022) without section 4.2, the fit of the hash.

    A control. Anchors are tokens of one training image and A is Gaussian, as where EcoFormer's fit starts; random
    hyperplanes in a kernel's feature space are those of Kulis and Grauman, "Kernelized Locality-Sensitive Hashing for
    Scalable Image Search", ICCV 2009.

    Args:
        num_bits, num_anchors, numerator: as for `EcoFormerSpec`.
        clamp: lower num_anchors to what the token count allows (and say so) instead of refusing.
    """

    num_bits: int = 16
    num_anchors: int = 25
    numerator: Literal["own_token", "kernel"] = "own_token"
    clamp: bool = False

    def __post_init__(self) -> None:
        self.unfitted()  # the limits are the same

    def unfitted(self) -> EcoFormerSpec:
        """The EcoFormer that this is, with a fit of no steps."""
        return EcoFormerSpec(self.num_bits, self.num_anchors, numerator=self.numerator, clamp=self.clamp, fit_steps=0)

    def fit_to_tokens(self, num_tokens: int, where: str) -> RandomHashSpec:
        if self.num_anchors <= num_tokens:
            return self
        if self.clamp:
            return replace(self, num_anchors=num_tokens)
        raise InputError(
            f"{where} has {num_tokens} tokens: num_anchors={self.num_anchors} > {num_tokens} tokens; raise "
            f"data.img_size, lower attention.num_anchors to at most {num_tokens}, or set attention.clamp=true"
        )

    def is_met_by(self, module: nn.Module) -> bool:
        return type(module) is RandomHashAttention and module.random_spec == self


@builds(RandomHashSpec)
class RandomHashAttention(EcoFormerAttention):
    """EcoFormer's attention whose fit draws anchors, takes the mean of their features, and leaves A as it is.

    `spec` is that of the EcoFormer that it is, with no steps of fitting; `random_spec` what was asked for.
    """

    random_spec: RandomHashSpec

    @classmethod
    def from_projections(cls, source: Projections, spec: Any) -> Self:
        """As EcoFormer: query rows become the shared projection, key rows are dropped."""
        module = super().from_projections(source, spec.unfitted())
        module.random_spec = spec
        return module

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator) -> HashFitReport:
        """Draw the anchors; the report's loss is EcoFormer's, of codes that nothing was optimised for."""
        return self.hash.fit(
            self.hash_input(x_BND),
            generator,
            top_k=min(self.spec.top_k, x_BND.shape[1] // 2),
            lr=self.spec.fit_lr,
            momentum=self.spec.fit_momentum,
            steps=0,
        )


register_reader(RandomHashAttention)(READERS[EcoFormerAttention])
