"""EcoFormer's attention: one shared projection for queries and keys, binary codes, linear in the tokens.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits, M anchors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError, counted
from ecoformer.fit.contract import FittableAttention, HashFitReport
from ecoformer.kinds.kernel_hash import KernelHash
from ecoformer.nn.bare import only_weights_matter
from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import split_heads
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import MOST_CODES, AttentionSpec, number, one_of
from ecoformer.ops.ecoformer import kernel_hash_attention
from ecoformer.ops.ecoformer.codes import normalize
from ecoformer.ops.ecoformer.columns import kernel_hash_layer
from ecoformer.ops.precision import full_precision, without_autocast


@dataclass(frozen=True)
class KernelHashSpec(AttentionSpec):
    """What EcoFormer's attention is made of, however its hash functions are found."""

    num_bits: int = 16
    num_anchors: int = 25
    numerator: Literal["own_token", "kernel"] = "own_token"
    clamp: bool = False

    def __post_init__(self) -> None:
        self.require_whole(1, "num_bits", "num_anchors", most=MOST_CODES)
        self.require_flags("clamp")
        one_of("numerator", self.numerator, ("own_token", "kernel"))

    def limits(self, num_tokens: int) -> dict[str, tuple[int, str]]:
        """The options that so many tokens limit: how far, and in words."""
        return {"num_anchors": (num_tokens, counted(num_tokens, "token"))}

    def fit_to_tokens(self, num_tokens: int, where: str) -> AttentionSpec:
        limits = self.limits(num_tokens).items()
        above = {key: limit for key, limit in limits if getattr(self, key) > limit[0]}
        if not above:
            return self
        faults = " and ".join(f"{key}={getattr(self, key)} > {words}" for key, (_, words) in above.items())
        lowered: dict[str, Any] = {key: most for key, (most, _) in above.items()}
        if min(lowered.values()) < 1:
            remedy = "raise data.img_size, or leave this layer out"
        elif self.clamp:
            return replace(self, **lowered)
        else:
            remedies = " and ".join(f"attention.{key} to at most {most}" for key, most in lowered.items())
            remedy = f"raise data.img_size, lower {remedies}, or set attention.clamp=true"
        raise InputError(f"{where} has {counted(num_tokens, 'token')}: {faults}; {remedy}")


@dataclass(frozen=True)
class EcoFormerSpec(KernelHashSpec):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022). Defaults are the published setting.

    Args:
        num_bits: code length K per head.
        num_anchors: kernel anchors M per head, drawn from the tokens of one image.
        numerator: "own_token" adds (K+1) * v_i as the official code does; "kernel" adds (K+1) * sum_j v_j,
            the normalised kernel attention that the denominator implies.
        clamp: lower num_anchors and top_k to what the token count allows (and say so) instead of refusing.
        top_k: tokens counted as similar, and as dissimilar, when the hash is fitted; 2 * top_k <= tokens.
        fit_lr, fit_momentum, fit_steps: SGD of the hash fit, per bit; fit_steps=0 leaves random hash functions.
    """

    name = "ecoformer"
    removed: ClassVar[Mapping[str, object]] = {"anchors": "image", "target": "cosine", "start": "random"}

    top_k: int = 10
    fit_lr: float = 5e-4
    fit_momentum: float = 0.9
    fit_steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_whole(1, "top_k")
        self.require_whole(0, "fit_steps")
        self.require_positive("fit_lr")
        if not 0 <= number(self.fit_momentum) < 1:
            raise InputError(f"attention.fit_momentum={self.fit_momentum!r} must lie in [0, 1)")

    def limits(self, num_tokens: int) -> dict[str, tuple[int, str]]:
        return super().limits(num_tokens) | {"top_k": (num_tokens // 2, f"half of {counted(num_tokens, 'token')}")}


@attention_kind(EcoFormerSpec)
class EcoFormerAttention(ReplacementAttention, FittableAttention):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022).

    Query rows become the shared projection, key rows are dropped, as the paper initialises it. `to_qk` and `to_v` keep
    the names of the published checkpoints. Hash arithmetic is float32 whatever the autocast: a code is a sign, and sums
    of codes need exact integers. `forward` raises InputError if the hash was never fitted.
    """

    parts: Mapping[str, str] = {"query": "to_qk", "value": "to_v", "proj": "proj"}
    new_parts = ("hash",)
    takes_mask = True
    shows_codes = True
    spec: Any  # EcoFormerSpec, or another KernelHashSpec
    to_qk: nn.Linear
    to_v: nn.Linear

    def add_parts(self, source: Projections | None) -> None:
        sizes = (self.num_heads, self.head_dim, self.num_bits, self.spec.num_anchors)
        self.hash = KernelHash(*sizes, device=self.proj.weight.device)

    def hash_input(self, x_BND: Tensor) -> Tensor:
        """The normalised shared queries and keys (B, H, N, C) in float32 (or float64): what the hash sees."""
        with without_autocast(x_BND):
            return normalize(full_precision(split_heads(self.to_qk(x_BND), self.num_heads)))

    def projected_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        if not only_weights_matter(x_BND, self.to_qk, self.to_v, self.proj):
            return super().projected_output(x_BND, feat_size, mask_BN)
        to_qk, to_v, proj = ((linear.weight, linear.bias) for linear in (self.to_qk, self.to_v, self.proj))
        return kernel_hash_layer(x_BND, to_qk, to_v, proj, self.hash.state(x_BND.dtype), self.spec.numerator, mask_BN)

    def attend(self, qk_BHNC: Tensor, v_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        with without_autocast(v_BHNC):
            state = self.hash.state(torch.promote_types(qk_BHNC.dtype, torch.float32))
            return kernel_hash_attention(qk_BHNC, v_BHNC, *state, self.spec.numerator, mask_BN).to(v_BHNC.dtype)

    @property
    def is_fitted(self) -> bool:
        return self.hash.is_fitted

    def signed_codes(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        return self.hash(self.hash_input(x_BND), mask_BN)

    def draw_random_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> None:
        self.hash.draw(self.hash_input(x_BND), generator, mask_BN)

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> HashFitReport:
        """Fit the hash to the tokens of a batch of this layer's inputs; the block name is left to the caller."""
        spec = self.spec
        options = {"top_k": spec.top_k, "lr": spec.fit_lr, "momentum": spec.fit_momentum, "steps": spec.fit_steps}
        return self.hash.fit(self.hash_input(x_BND), generator, mask_BN, **options)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        """Code similarities h_i . h_j, raised and divided as `forward` does implicitly.

        With the own-token numerator the weights of a row do not sum to one.
        """
        code_BHNK = self.hash(self.hash_input(x_BND))
        similarity_BHNN = code_BHNK @ code_BHNK.transpose(-2, -1)
        offset = self.num_bits + 1
        raised_BHNN = similarity_BHNN + offset
        denominator = raised_BHNN.sum(dim=-1, keepdim=True)
        if self.spec.numerator == "kernel":
            return raised_BHNN / denominator
        own = torch.eye(similarity_BHNN.shape[-1], device=x_BND.device, dtype=similarity_BHNN.dtype)
        return (similarity_BHNN + offset * own) / denominator

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core in the paper's accounting.

        It leaves out the squares inside the distance, the normalisation of qk, v * (K + 1), the mean, exp and
        sign, as the published table does; the audited convention of `ecoformer.energy` counts them.
        """
        muls, adds = core_ops_per_token(self.head_dim, self.num_bits, self.spec.num_anchors)
        return self.num_heads * num_tokens * muls, self.num_heads * num_tokens * adds


def core_ops_per_token(channels: int, bits: int, anchors: int, num_hashes: int = 1) -> tuple[int, int]:
    """(multiplications, additions) of one token in one head, in the paper's accounting.

    It is hashed `num_hashes` times, then attention reads its codes. Without anchors a hash is linear in the token.
    """
    hash_muls, hash_adds = channels * bits, channels * bits
    if anchors:
        hash_muls, hash_adds = 2 * anchors + anchors * bits, 2 * anchors * channels + anchors * bits
    adds = num_hashes * hash_adds + 2 * bits + 2 * bits * channels + channels
    return num_hashes * hash_muls + bits + 1 + channels, adds
