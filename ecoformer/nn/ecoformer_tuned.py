"""EcoFormer's hash attention with what measurements ask for: real keys, 0/1 codes, a fit to the attention output.

What differs from `ecoformer`, and what each step is worth, is measured in docs/hash_learning.md.
Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits, M anchors.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.hashing import NEVER_FITTED, FittableAttention, HashFitReport, bit_statistics
from ecoformer.nn.heads import join_heads, refuse_mask, split_heads
from ecoformer.nn.precision import full_precision, without_autocast
from ecoformer.nn.projections import Projections, linear_from, register_reader
from ecoformer.nn.specs import AttentionSpec, builds, register_spec
from ecoformer.ops.attention_quality import relative_error
from ecoformer.ops.binary_attention import TokenHash, binary_attention, binary_weights
from ecoformer.ops.binary_fit import BinaryHash, fit_binary_hash, random_hash


@register_spec("ecoformer_tuned")
@dataclass(frozen=True)
class EcoFormerTunedSpec(AttentionSpec):
    """Hash attention fitted to the output of the softmax attention that it replaces.

    Args:
        num_bits: code length K per head.
        num_anchors: kernel anchors M per head and hash, fitted too; 0: hash functions linear in the token.
        qk: "separate" keeps queries and keys, each with hash functions of their own; "shared" hashes the queries
            in place of the keys, as EcoFormer does, which saves the key projection and half of the hash.
        code: "binary" for 0/1 codes; "sign" for -1/+1, with an offset that keeps the weights positive.
        fit_lr, fit_steps, fit_batch_size: Adam over all bits at once; fit_steps=0 leaves random hash functions.
    """

    num_bits: int = 16
    num_anchors: int = 10
    qk: Literal["separate", "shared"] = "separate"
    code: Literal["binary", "sign"] = "binary"
    fit_lr: float = 0.05
    fit_steps: int = 400
    fit_batch_size: int = 16

    def __post_init__(self) -> None:
        for key, least in (("num_bits", 1), ("num_anchors", 0), ("fit_steps", 0), ("fit_batch_size", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"attention.{key}={value!r} must be a whole number of at least {least}")
        for key, choices in (("qk", ("separate", "shared")), ("code", ("binary", "sign"))):
            if getattr(self, key) not in choices:
                raise InputError(f"attention.{key}={getattr(self, key)!r} must be {' or '.join(choices)}")
        if not 0 < self.fit_lr < float("inf"):
            raise InputError(f"attention.fit_lr={self.fit_lr!r} must be a finite number above 0")


class TokenHashFunctions(nn.Module):
    """Hash functions of the queries or keys of one layer, as buffers that only change in place."""

    A: Tensor
    threshold: Tensor
    anchors: Tensor | None
    bandwidth: Tensor | None

    def __init__(self, num_heads: int, head_dim: int, num_bits: int, num_anchors: int, device: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": torch.float32}
        self.register_buffer("A", torch.zeros(num_heads, num_bits, num_anchors or head_dim, **factory))
        self.register_buffer("threshold", torch.zeros(num_heads, num_bits, **factory))
        has_kernel = num_anchors > 0
        self.register_buffer(
            "anchors", torch.zeros(num_heads, num_anchors, head_dim, **factory) if has_kernel else None
        )
        self.register_buffer("bandwidth", torch.ones(num_heads, **factory) if has_kernel else None)

    def state(self, dtype: torch.dtype) -> TokenHash:
        """The functions in the dtype of the tokens: model.half() converts buffers too, codes are not computed in it."""
        kernel = (None if x is None else x.to(dtype) for x in (self.anchors, self.bandwidth))
        return TokenHash(self.A.to(dtype), self.threshold.to(dtype), *kernel)


@builds(EcoFormerTunedSpec)
class EcoFormerTunedAttention(ReplacementAttention, FittableAttention):
    """Linear attention on fitted codes of queries and keys.

    The weight of key j for query i is sum_b s_b q_ib k_jb + floor, with fitted s_b > 0 per bit and floor > 0 per head.
    Codes are signs of differences of Gaussian kernel features, as in EcoFormer, but the features are those of queries
    and keys as they are, not normalised, so that attention may be sharp for one token and flat for another.

    With qk="shared" the key rows stay as buffers: `forward` never uses them, a fit needs them for its target.

    Args:
        dim: model channels D; divisible by num_heads.
        num_heads: heads H.
        spec: code length, anchors and fit settings.
    """

    new_parts = ("query_hash", "key_hash", "bit_weight", "floor")
    spec: EcoFormerTunedSpec
    key_weight: Tensor
    key_bias: Tensor | None
    bit_weight: Tensor
    floor: Tensor
    fitted: Tensor
    fit_count: Tensor

    def __init__(self, source: Projections, spec: EcoFormerTunedSpec) -> None:
        super().__init__(source.dim, source.num_heads, spec)
        own_keys = source.own_keys(f"to fit {spec.name} to")
        device = source.proj.weight.device
        self.to_q = linear_from(source.query)
        self.to_v = linear_from(source.value)
        self.proj = linear_from(source.proj)
        self.proj_drop = nn.Dropout(source.proj_drop)
        sizes = (self.num_heads, self.head_dim, spec.num_bits, spec.num_anchors)
        self.query_hash = TokenHashFunctions(*sizes, device=device)
        if spec.qk == "separate":
            self.to_k = linear_from(own_keys)
            self.key_hash = TokenHashFunctions(*sizes, device=device)
        else:
            self.register_buffer("key_weight", own_keys.weight.detach().clone())
            bias = own_keys.bias
            self.register_buffer("key_bias", None if bias is None else bias.detach().clone())
        factory: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.register_buffer("bit_weight", torch.ones(self.num_heads, spec.num_bits, **factory))
        self.register_buffer("floor", torch.ones(self.num_heads, **factory))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("fit_count", torch.zeros((), dtype=torch.int64, device=device))
        self._known_fitted = False

    @classmethod
    def from_projections(cls, source: Projections, spec: EcoFormerTunedSpec) -> EcoFormerTunedAttention:
        """All of the source's weights carry over. Raises InputError if it has no keys."""
        return cls(source, spec)

    @property
    def num_bits(self) -> int:
        return self.spec.num_bits

    @property
    def num_anchors(self) -> int:
        return self.spec.num_anchors

    def _heads(self, x_BND: Tensor) -> Tensor:
        return full_precision(split_heads(x_BND, self.num_heads))

    def _keys(self, x_BND: Tensor) -> Tensor:
        """The keys that a fit's target is made of; also those of `forward` with qk="separate"."""
        if self.spec.qk == "separate":
            return self._heads(self.to_k(x_BND))
        return self._heads(F.linear(x_BND, self.key_weight, self.key_bias))

    def _hashing(self, dtype: torch.dtype) -> BinaryHash:
        return BinaryHash(
            self.query_hash.state(dtype),
            self.key_hash.state(dtype) if self.spec.qk == "separate" else None,
            self.bit_weight.to(dtype),
            self.floor.to(dtype),
            signed=self.spec.code == "sign",
        )

    def _require_fitted(self) -> None:
        # The flag lives on the device; it is read once, not at every step. Meta tensors have no value to read.
        if self._known_fitted or self.fitted.is_meta:
            return
        if not bool(self.fitted):
            raise InputError(NEVER_FITTED)
        self._known_fitted = True

    def _codes(self, x_BND: Tensor, hashing: BinaryHash) -> tuple[Tensor, Tensor]:
        q_BHNC = self._heads(self.to_q(x_BND))
        k_BHNC = q_BHNC if hashing.key is None else self._keys(x_BND)
        with without_autocast(x_BND):
            return hashing.codes(q_BHNC, k_BHNC)

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D). `feat_size` is what timm's blocks pass; masks are refused.

        Raises InputError if the hash functions were never fitted.
        """
        refuse_mask(self, attn_mask, is_causal)
        self._require_fitted()
        values_BND = self.to_v(x_BND)
        v_BHNC = self._heads(values_BND)
        hashing = self._hashing(v_BHNC.dtype)
        codes = self._codes(x_BND, hashing)
        with without_autocast(x_BND):
            out_BHNC = binary_attention(*codes, v_BHNC, hashing.weight_HK, hashing.raised_floor_H)
        return self.proj_drop(self.proj(join_heads(out_BHNC).to(values_BND.dtype)))

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        self._require_fitted()
        hashing = self._hashing(full_precision(x_BND).dtype)
        return binary_weights(*self._codes(x_BND, hashing), hashing.weight_HK, hashing.raised_floor_H)

    @torch.no_grad()
    def fit_hash(self, x_BND: Tensor, generator: torch.Generator) -> HashFitReport:
        """Fit the codes to the softmax attention of the layer's own queries and keys on these inputs.

        A first fit starts from random functions, a later one from those it has. Samples with NaN or infinite
        features are left out. A head whose error does not fall keeps the functions it had; `accepted_bits` is K
        times the share of heads that took new ones, rounded down, and `failed_bits` likewise those that met NaN.
        The objective is the squared relative error.
        """
        started = time.perf_counter()
        with without_autocast(x_BND):
            tokens = [self._heads(self.to_q(x_BND)), self._keys(x_BND), self._heads(self.to_v(x_BND))]
            (q_BHNC, k_BHNC, v_BHNC), num_skipped = _finite_samples(tokens)
            spec = self.spec
            random = random_hash(
                q_BHNC,
                k_BHNC,
                generator,
                num_bits=spec.num_bits,
                num_anchors=spec.num_anchors,
                shared=spec.qk == "shared",
                signed=spec.code == "sign",
            )
            before = self._hashing(q_BHNC.dtype) if bool(self.fitted) else random
            fit = fit_binary_hash(
                before,
                q_BHNC,
                k_BHNC,
                v_BHNC,
                generator,
                lr=spec.fit_lr,
                steps=spec.fit_steps,
                batch_size=spec.fit_batch_size,
            )
            self._store(fit.hashing)
            target_BHNC = F.scaled_dot_product_attention(q_BHNC, k_BHNC, v_BHNC)
            old, new = (torch.cat(h.codes(q_BHNC, k_BHNC)) for h in (before, fit.hashing))
            balance, correlation = bit_statistics(new if spec.code == "sign" else 2 * new - 1)
            return HashFitReport(
                block="",
                seconds=time.perf_counter() - started,
                objective_before=float(fit.error_before_H.mean()),
                objective_after=float(fit.error_after_H.mean()),
                accepted_bits=int(fit.accepted_H.sum()) * spec.num_bits // self.num_heads,
                num_bits=spec.num_bits,
                bit_balance=balance,
                bit_correlation=correlation,
                flipped_bits=float((old != new).float().mean()),
                failed_bits=int((~fit.finite_H).sum()) * spec.num_bits // self.num_heads,
                skipped_images=num_skipped,
                attention_error=relative_error(fit.hashing.attend(q_BHNC, k_BHNC, v_BHNC), target_BHNC),
                random_error=relative_error(random.attend(q_BHNC, k_BHNC, v_BHNC), target_BHNC),
                uniform_error=relative_error(v_BHNC.mean(dim=2, keepdim=True).expand_as(v_BHNC), target_BHNC),
            )

    def _store(self, hashing: BinaryHash) -> None:
        for own, new in zip(self._hash_buffers(), hashing.tensors(), strict=True):
            own.copy_(new)
        self.fitted.fill_(True)
        self.fit_count.add_(1)
        self._known_fitted = True

    def _hash_buffers(self) -> list[Tensor]:
        """The buffers behind `BinaryHash.tensors`, in its order."""
        functions = [self.query_hash, self.key_hash] if self.spec.qk == "separate" else [self.query_hash]
        own = [x for f in functions for x in (f.A, f.threshold, f.anchors, f.bandwidth) if x is not None]
        return [*own, self.bit_weight, self.floor]

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core, accounted as the paper accounts EcoFormer.

        Term by term as there (see `EcoFormerAttention.paper_core_ops`), with the hash charged once for queries and
        once for keys. New against it: the weights of the bits, K (C + 1) multiplications per head and image. The
        key projection is a Linear and counted with the others.
        """
        heads, channels, bits, anchors = self.num_heads, self.head_dim, self.num_bits, self.num_anchors
        hashes = 2 if self.spec.qk == "separate" else 1
        if anchors:
            hash_muls, hash_adds = 2 * anchors + anchors * bits, 2 * anchors * channels + anchors * bits
        else:
            hash_muls = hash_adds = channels * bits
        per_token_muls = hashes * hash_muls + bits + 1 + channels
        per_token_adds = hashes * hash_adds + 2 * bits + 2 * bits * channels + channels
        bit_weight_muls = bits * (channels + 1)
        return heads * (num_tokens * per_token_muls + bit_weight_muls), heads * num_tokens * per_token_adds


def _finite_samples(tokens: list[Tensor]) -> tuple[list[Tensor], int]:
    """The samples without NaN or infinity in any of the tensors, and how many there are of the others.

    If no sample is left, all of them as zeros, so that a run goes on.
    """
    usable_B = torch.stack([x.isfinite().flatten(1).all(dim=1) for x in tokens]).all(dim=0)
    num_skipped = int((~usable_B).sum())
    if num_skipped == len(usable_B):
        return [torch.zeros_like(x) for x in tokens], num_skipped
    return [x[usable_B] for x in tokens], num_skipped


@register_reader(EcoFormerTunedAttention)
def _read(module: EcoFormerTunedAttention, where: str) -> Projections:
    if module.spec.qk == "separate":
        key, key_part = module.to_k, "to_k"
    else:
        key_part = "key_weight"
        key = nn.Linear(module.dim, module.dim, bias=module.key_bias is not None, device="meta")
        key.weight = nn.Parameter(module.key_weight.detach().clone())
        if module.key_bias is not None:
            key.bias = nn.Parameter(module.key_bias.detach().clone())
    return Projections(
        where=where,
        dim=module.dim,
        num_heads=module.num_heads,
        query=module.to_q,
        key=key,
        value=module.to_v,
        proj=module.proj,
        proj_drop=module.proj_drop.p,
        parts={"query": "to_q", "key": key_part, "value": "to_v", "proj": "proj"},
        dropped=("query_hash", "key_hash", "bit_weight", "floor"),
    )
