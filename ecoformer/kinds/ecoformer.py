"""EcoFormer's attention: one shared projection for queries and keys, binary codes, linear in the tokens.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits, M anchors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.contract import FittableAttention, HashFitReport
from ecoformer.fit.target import SoftmaxTarget
from ecoformer.kinds.kept_keys import KeptKeys
from ecoformer.kinds.kernel_hash import KernelHash
from ecoformer.nn.bare import only_weights_matter
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.heads import join_heads, refuse_mask, split_heads
from ecoformer.nn.precision import full_precision, without_autocast
from ecoformer.nn.projections import Projections, linear_from, register_reader
from ecoformer.nn.specs import AttentionSpec, builds, one_of, register_spec
from ecoformer.ops.ecoformer.anchors import ANCHORS
from ecoformer.ops.ecoformer.codes import normalize
from ecoformer.ops.ecoformer.columns import kernel_hash_layer
from ecoformer.ops.ecoformer.eager import kernel_hash_attention


@register_spec("ecoformer")
@dataclass(frozen=True)
class EcoFormerSpec(AttentionSpec):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022). Defaults are the published setting.

    Args:
        num_bits: code length K per head.
        num_anchors: kernel anchors M per head.
        anchors: "image" draws them from the tokens of one image, "batch" from those of all images of the fit, "kmeans"
            takes k-means centres of the latter.
        target: tokens that a fit calls similar: "cosine" of the shared queries and keys, or "attention", the strongest
            keys in the softmax attention that is replaced; its key rows then stay as buffers, for fits alone.
        top_k: tokens counted as similar, and as dissimilar, when the hash is fitted; 2 * top_k <= tokens.
        start: of each bit's fit: "random", or "spectral", a closed form (see `ops.spectral_start`).
        numerator: "own_token" adds (K+1) * v_i as the official code does; "kernel" adds (K+1) * sum_j v_j,
            the normalised kernel attention that the denominator implies.
        fit_lr, fit_momentum, fit_steps: SGD of the hash fit, per bit; fit_steps=0 leaves random hash functions.
        clamp: lower num_anchors and top_k to what the token count allows (and say so) instead of refusing.
    """

    num_bits: int = 16
    num_anchors: int = 25
    anchors: Literal["image", "batch", "kmeans"] = "image"
    target: Literal["cosine", "attention"] = "cosine"
    top_k: int = 10
    numerator: Literal["own_token", "kernel"] = "own_token"
    start: Literal["random", "spectral"] = "random"
    fit_lr: float = 5e-4
    fit_momentum: float = 0.9
    fit_steps: int = 100
    clamp: bool = False

    def __post_init__(self) -> None:
        for key, least in (("num_bits", 1), ("num_anchors", 1), ("top_k", 1), ("fit_steps", 0)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"attention.{key}={value!r} must be a whole number of at least {least}")
        one_of("numerator", self.numerator, ("own_token", "kernel"))
        one_of("anchors", self.anchors, ANCHORS)
        one_of("target", self.target, ("cosine", "attention"))
        one_of("start", self.start, ("random", "spectral"))
        if not self.fit_lr > 0:
            raise InputError(f"attention.fit_lr={self.fit_lr!r} must be above 0")
        if not 0 <= self.fit_momentum < 1:
            raise InputError(f"attention.fit_momentum={self.fit_momentum!r} must lie in [0, 1)")

    def fit_to_tokens(self, num_tokens: int, where: str) -> EcoFormerSpec:
        most = num_tokens if self.anchors == "image" else self.num_anchors
        anchors, top_k = min(self.num_anchors, most), min(self.top_k, num_tokens // 2)
        if (anchors, top_k) == (self.num_anchors, self.top_k):
            return self
        if self.clamp and num_tokens >= 2:
            return replace(self, num_anchors=anchors, top_k=top_k)
        faults, remedies = [], []
        if anchors < self.num_anchors:
            faults.append(f"num_anchors={self.num_anchors} > {num_tokens} tokens")
            remedies.append(f"attention.num_anchors to at most {anchors}")
        if top_k < self.top_k:
            faults.append(f"top_k={self.top_k} > half of {num_tokens} tokens")
            remedies.append(f"attention.top_k to at most {top_k}")
        raise InputError(
            f"{where} has {num_tokens} tokens: {' and '.join(faults)}; raise data.img_size, "
            f"lower {' and '.join(remedies)}, "
            "or set attention.clamp=true"
        )


@builds(EcoFormerSpec)
class EcoFormerAttention(ReplacementAttention, FittableAttention, KeptKeys):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022).

    `to_qk` and `to_v` keep the names of the published checkpoints. Hash arithmetic is float32 whatever the
    autocast: a code is a sign, and sums of codes need exact integers.

    Args:
        dim: model channels D; divisible by num_heads.
        num_heads: heads H.
        spec: code length, anchors, numerator and fit settings.
    """

    carries = ("query", "value", "proj")
    new_parts = ("hash",)
    shows_codes = True
    spec: EcoFormerSpec

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spec: EcoFormerSpec,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__(dim, num_heads, spec)
        self.to_qk = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.to_v = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.hash = KernelHash(num_heads, self.head_dim, spec.num_bits, spec.num_anchors, device=factory.get("device"))

    @classmethod
    def from_projections(cls, source: Projections, spec: Any) -> Self:
        """Query rows become the shared projection, key rows are dropped, as the paper initialises it.

        With target="attention" they stay as buffers. Raises InputError if the source has none then.
        """
        module = cls(
            source.dim,
            source.num_heads,
            spec,
            qkv_bias=source.query.bias is not None,
            proj_bias=source.proj.bias is not None,
            proj_drop=source.proj_drop,
            device="meta",
        )
        module.to_qk = linear_from(source.query)
        module.to_v = linear_from(source.value)
        module.proj = linear_from(source.proj)
        module.hash = KernelHash(
            source.num_heads,
            module.head_dim,
            spec.num_bits,
            spec.num_anchors,
            device=source.proj.weight.device,
        )
        if spec.target == "attention":
            module.keep_keys(source.own_keys("for attention.target=attention"))
            module.carries = ("query", "key", "value", "proj")  # type: ignore[assignment]
        return module

    @property
    def num_bits(self) -> int:
        return self.spec.num_bits

    @property
    def num_anchors(self) -> int:
        return self.spec.num_anchors

    def hash_input(self, x_BND: Tensor) -> Tensor:
        """The normalised shared queries and keys (B, H, N, C) in float32 (or float64): what the hash sees."""
        with without_autocast(x_BND):
            return normalize(full_precision(split_heads(self.to_qk(x_BND), self.num_heads)))

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused.

        Raises InputError if the hash was never fitted.
        """
        refuse_mask(self, attn_mask, is_causal)
        if only_weights_matter(x_BND, self.to_qk, self.to_v, self.proj):
            to_qk, to_v, proj = ((linear.weight, linear.bias) for linear in (self.to_qk, self.to_v, self.proj))
            state = self.hash.state(x_BND.dtype)
            return self.proj_drop(kernel_hash_layer(x_BND, to_qk, to_v, proj, state, self.spec.numerator))
        qk_BND, v_BND = self.to_qk(x_BND), self.to_v(x_BND)
        with without_autocast(x_BND):
            qk_BHNC, v_BHNC = (split_heads(part, self.num_heads) for part in (qk_BND, v_BND))
            state = self.hash.state(torch.promote_types(qk_BHNC.dtype, torch.float32))
            out_BHNC = kernel_hash_attention(qk_BHNC, v_BHNC, *state, self.spec.numerator)
        return self.proj_drop(self.proj(join_heads(out_BHNC).to(v_BND.dtype)))

    @property
    def is_fitted(self) -> bool:
        return self.hash.is_fitted

    def target(self, x_BND: Tensor, feat_size: Any = None) -> SoftmaxTarget | None:
        """Known with target="attention" alone, which keeps the keys: that of the layer's queries and the kept keys."""
        if self.spec.target != "attention":
            return None
        with without_autocast(x_BND):
            projected = (self.to_qk(x_BND), self.kept_keys(x_BND), self.to_v(x_BND))
            return SoftmaxTarget(*(full_precision(split_heads(y_BND, self.num_heads)) for y_BND in projected))

    def signed_codes(self, x_BND: Tensor) -> Tensor:
        return self.hash(self.hash_input(x_BND))

    def draw_random_hash(self, x_BND: Tensor, generator: torch.Generator) -> None:
        self.hash.draw(self.hash_input(x_BND), generator, self.spec.anchors)

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator) -> HashFitReport:
        """Fit the hash to the tokens of a batch of this layer's inputs; the block name is left to the caller."""
        target = self.target(x_BND)
        return self.hash.fit(
            self.hash_input(x_BND),
            generator,
            top_k=self.spec.top_k,
            lr=self.spec.fit_lr,
            momentum=self.spec.fit_momentum,
            steps=self.spec.fit_steps,
            anchors=self.spec.anchors,
            spectral=self.spec.start == "spectral",
            targets=None if target is None else (target.q_BHNC, target.k_BHNC),
        )

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
        heads, channels, bits, anchors = self.num_heads, self.head_dim, self.num_bits, self.num_anchors
        per_token_muls = 2 * anchors + anchors * bits + bits + 1 + channels
        per_token_adds = 2 * anchors * channels + anchors * bits + 2 * bits + 2 * bits * channels + channels
        return heads * num_tokens * per_token_muls, heads * num_tokens * per_token_adds


@register_reader(EcoFormerAttention)
def _read(module: EcoFormerAttention, where: str) -> Projections:
    keeps_keys = module.spec.target == "attention"
    return Projections(
        where=where,
        dim=module.dim,
        num_heads=module.num_heads,
        query=module.to_qk,
        key=module.key_linear() if keeps_keys else None,
        value=module.to_v,
        proj=module.proj,
        proj_drop=module.proj_drop.p,
        parts={"query": "to_qk", **({"key": "key_weight"} if keeps_keys else {}), "value": "to_v", "proj": "proj"},
        dropped=("hash",),
    )
