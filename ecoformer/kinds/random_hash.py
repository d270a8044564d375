"""EcoFormer's attention with its hash functions as they are drawn: the floor that fitting them has to beat.

Shapes: B batch, N tokens, D model channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.fit.contract import HashFitReport
from ecoformer.kinds.ecoformer import EcoFormerAttention, EcoFormerSpec, KernelHashSpec
from ecoformer.nn.base import attention_kind


@dataclass(frozen=True)
class RandomHashSpec(KernelHashSpec):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022) without section 4.2, the fit of the hash.

    A control. Anchors are tokens of one training image and A is Gaussian, as where EcoFormer's fit starts; random
    hyperplanes in a kernel's feature space are those of Kulis and Grauman, "Kernelized Locality-Sensitive Hashing for
    Scalable Image Search", ICCV 2009.

    Args:
        num_bits, num_anchors, numerator: as for `EcoFormerSpec`.
        clamp: lower num_anchors to what the token count allows (and say so) instead of refusing.
    """

    name = "random_hash"


@attention_kind(RandomHashSpec)
class RandomHashAttention(EcoFormerAttention):
    """EcoFormer's attention whose fit draws anchors, takes the mean of their features, and leaves A as it is."""

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> HashFitReport:
        """Draw the anchors; the report's loss is EcoFormer's, of codes that nothing was optimised for."""
        spec, most = EcoFormerSpec(), x_BND.shape[1] if mask_BN is None else int(mask_BN.sum(dim=1).max())
        options = {"top_k": min(spec.top_k, most // 2), "lr": spec.fit_lr, "momentum": spec.fit_momentum, "steps": 0}
        return self.hash.fit(self.hash_input(x_BND), generator, mask_BN, **options)
