"""EcoFormer's hash attention with what measurements ask for: real keys, 0/1 codes, a fit to the attention output.

What differs from `ecoformer`, and what each step is worth, is measured in docs/hash_learning.md.
Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits, M anchors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.contract import FittableAttention, HashFitReport, finite_images
from ecoformer.fit.output_fit import fit_and_report
from ecoformer.fit.target import AttentionTarget, SoftmaxTarget
from ecoformer.kinds.ecoformer import core_ops_per_token
from ecoformer.kinds.token_hash import TokenHashFunctions
from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.fitted_state import FittedState
from ecoformer.nn.heads import join_heads, real_tokens, split_heads
from ecoformer.nn.projections import Projections, linear_of, refusal, trained_as
from ecoformer.nn.specs import MOST_CODES, AttentionSpec, number, one_of
from ecoformer.nn.turned import TurnedLinear
from ecoformer.ops.codes.attention import binary_attention, binary_weights
from ecoformer.ops.codes.tuned import BinaryHash, random_hash
from ecoformer.ops.precision import full_precision, without_autocast


@dataclass(frozen=True)
class EcoFormerTunedSpec(AttentionSpec):
    """Hash attention fitted to the output of the softmax attention that it replaces.

    Args:
        num_bits: code length K per head.
        num_anchors: kernel anchors M per head and hash, fitted too; 0: hash functions linear in the token.
        qk: "separate" keeps queries and keys, each with hash functions of their own; "shared" hashes the queries
            in place of the keys, as EcoFormer does, which saves the key projection and half of the hash.
        code: "binary" for 0/1 codes; "sign" for -1/+1, with an offset that keeps the weights positive.
        bit_weights: fit a weight above 0 to every bit; False: all are 1.
        floor: weight of a key that shares no bit with the query, above 0; None: fitted, one per head.
        fit_lr, fit_steps, fit_batch_size: Adam over all bits at once; fit_steps=0 leaves random hash functions.
    """

    name = "ecoformer_tuned"
    removed: ClassVar[Mapping[str, object]] = {"anchors": "batch"}

    num_bits: int = 16
    num_anchors: int = 10
    qk: Literal["separate", "shared"] = "separate"
    code: Literal["binary", "sign"] = "binary"
    bit_weights: bool = True
    floor: float | None = None
    fit_lr: float = 0.05
    fit_steps: int = 400
    fit_batch_size: int = 16

    def __post_init__(self) -> None:
        self.require_whole(1, "num_bits", most=MOST_CODES)
        self.require_whole(1, "fit_batch_size")
        self.require_whole(0, "num_anchors", most=MOST_CODES)
        self.require_whole(0, "fit_steps")
        one_of("qk", self.qk, ("separate", "shared"))
        one_of("code", self.code, ("binary", "sign"))
        self.require_flags("bit_weights")
        if self.floor is not None and not 0 < number(self.floor) < float("inf"):
            raise InputError(f"attention.floor={self.floor!r} must be a finite number above 0, or null to fit it")
        self.require_positive("fit_lr")


@attention_kind(EcoFormerTunedSpec)
class EcoFormerTunedAttention(FittedState, ReplacementAttention, FittableAttention):
    """Linear attention on fitted codes of queries and keys.

    The weight of key j for query i is sum_b s_b q_ib k_jb + floor, with fitted s_b > 0 per bit and floor > 0 per head.
    Codes are signs of differences of Gaussian kernel features, as in EcoFormer, but the features are those of queries
    and keys as they are, not normalised, so that attention may be sharp for one token and flat for another.

    With qk="shared" the key rows stay as buffers: `forward` never uses them, a fit needs them for its target.
    """

    # In the order of their parameters.
    parts: Mapping[str, str] = {"query": "to_q", "value": "to_v", "proj": "proj", "key": "to_k"}
    needs_keys = "to fit {} to"
    new_parts = ("query_hash", "key_hash", "bit_weight", "floor")
    takes_mask = True
    shows_codes = True
    spec: EcoFormerTunedSpec
    to_q: nn.Linear
    to_k: nn.Linear
    to_v: nn.Linear
    key_weight: Tensor
    key_bias: Tensor | None
    bit_weight: Tensor
    floor: Tensor

    def add_parts(self, source: Projections | None) -> None:
        spec, device = self.spec, self.proj.weight.device
        sizes = (self.num_heads, self.head_dim, spec.num_bits, spec.num_anchors)
        self.query_hash = TokenHashFunctions(*sizes, device=device)
        if spec.qk == "separate":
            self.key_hash = TokenHashFunctions(*sizes, device=device)
        else:
            keys = self.to_k
            if isinstance(keys, TurnedLinear):
                where = "" if source is None else source.where
                raise refusal(where, "what turns the keys (qk-norm, RoPE)", "set attention.qk=separate")
            del self.to_k
            self.register_buffer("key_weight", keys.weight.detach().clone())
            self.register_buffer("key_bias", None if keys.bias is None else keys.bias.detach().clone())
            self.parts = {**self.parts, "key": "key_weight"}
        factory: dict[str, Any] = {"device": device, "dtype": torch.float32}
        self.register_buffer("bit_weight", torch.ones(self.num_heads, spec.num_bits, **factory))
        floor = 1.0 if spec.floor is None else spec.floor
        self.register_buffer("floor", torch.full((self.num_heads,), floor, **factory))
        self.register_fitted(device)

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
            **self._kind(),
        )

    def _kind(self) -> dict[str, bool]:
        spec = self.spec
        return {"signed": spec.code == "sign", "fits_weight": spec.bit_weights, "fits_floor": spec.floor is None}

    def _random_hash(
        self, q_BHNC: Tensor, k_BHNC: Tensor, mask_BN: Tensor | None, generator: torch.Generator
    ) -> BinaryHash:
        spec = self.spec
        return random_hash(
            real_tokens(q_BHNC, mask_BN),
            real_tokens(k_BHNC, mask_BN),
            generator,
            num_bits=spec.num_bits,
            num_anchors=spec.num_anchors,
            shared=spec.qk == "shared",
            floor=1.0 if spec.floor is None else spec.floor,
            **self._kind(),
        )

    def _codes(self, x_BND: Tensor, hashing: BinaryHash) -> tuple[Tensor, Tensor]:
        q_BHNC = self._heads(self.to_q(x_BND))
        k_BHNC = q_BHNC if hashing.key is None else self._keys(x_BND)
        with without_autocast(x_BND):
            return hashing.codes(q_BHNC, k_BHNC)

    def attention_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """Raises InputError if the hash functions were never fitted."""
        self.require_fitted()
        values_BND = self.to_v(x_BND)
        v_BHNC = self._heads(values_BND)
        hashing = self._hashing(v_BHNC.dtype)
        codes = self._codes(x_BND, hashing)
        with without_autocast(x_BND):
            out_BHNC = binary_attention(*codes, v_BHNC, hashing.weights_of_bits, hashing.raised_floor_H, mask_BN)
        return join_heads(out_BHNC).to(values_BND.dtype)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        self.require_fitted()
        hashing = self._hashing(full_precision(x_BND).dtype)
        return binary_weights(*self._codes(x_BND, hashing), hashing.weight_HK, hashing.raised_floor_H)

    def target(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> AttentionTarget:
        """That of the layer's own queries and keys; with qk="shared", of the keys as they were converted."""
        return self._softmax(x_BND, mask_BN).known()

    def _softmax(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> SoftmaxTarget:
        with without_autocast(x_BND):
            q_BHNC, k_BHNC, v_BHNC = self._heads(self.to_q(x_BND)), self._keys(x_BND), self._heads(self.to_v(x_BND))
            return SoftmaxTarget(q_BHNC, k_BHNC, v_BHNC, mask_BN)

    def signed_codes(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        codes = torch.cat(self._codes(x_BND, self._hashing(full_precision(x_BND).dtype)))
        return codes if self.spec.code == "sign" else 2 * codes - 1

    @torch.no_grad()
    def draw_random_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> None:
        target = self._softmax(x_BND)
        q_BHNC, k_BHNC, _, mask_BN = finite_images([target.q_BHNC, target.k_BHNC, target.v_BHNC], mask_BN)
        self._store(self._random_hash(q_BHNC, k_BHNC, mask_BN, generator))

    @torch.no_grad()
    def fit_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> HashFitReport:
        """Fit the codes to the softmax attention of the layer's own queries and keys on these inputs.

        A first fit starts from random functions, a later one from those it has. Images with NaN or infinite
        features are left out. A head whose error does not fall keeps the functions it had. The objective is the squared
        relative error. Raises InputError if no image has finite features.
        """
        spec = self.spec
        with without_autocast(x_BND):
            target = self._softmax(x_BND)
            *qkv, mask_BN = finite_images([target.q_BHNC, target.k_BHNC, target.v_BHNC], mask_BN)
            q_BHNC, k_BHNC, v_BHNC = qkv
            known = SoftmaxTarget(q_BHNC, k_BHNC, v_BHNC, mask_BN).known().split_heads(self.num_heads)
            random = self._random_hash(q_BHNC, k_BHNC, mask_BN, generator)
            before = self._hashing(q_BHNC.dtype) if self.is_fitted else random
            fitted, report = fit_and_report(
                before,
                qkv,
                known,
                generator,
                num_bits=spec.num_bits,
                num_images=len(x_BND),
                random=random,
                mask_BN=mask_BN,
                lr=spec.fit_lr,
                steps=spec.fit_steps,
                batch_size=spec.fit_batch_size,
            )
            self._store(fitted)
            return report

    def _store(self, hashing: BinaryHash) -> None:
        functions = [self.query_hash, self.key_hash] if self.spec.qk == "separate" else [self.query_hash]
        own = [x for function in functions for x in function.buffers_to_fit()]
        own += [self.bit_weight] if self.spec.bit_weights else []
        own += [self.floor] if self.spec.floor is None else []
        for buffer, new in zip(own, hashing.tensors(), strict=True):
            buffer.copy_(new)
        self.mark_fitted()

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention core, accounted as the paper accounts EcoFormer.

        Term by term as there (see `core_ops_per_token`), with the hash charged once for queries and once for keys. New
        against it: the weights of the bits, where they are fitted, K (C + 1) multiplications per head and image. The
        key projection is a Linear and counted with the others.
        """
        heads, channels, bits = self.num_heads, self.head_dim, self.num_bits
        hashes = 2 if self.spec.qk == "separate" else 1
        muls, adds = core_ops_per_token(channels, bits, self.spec.num_anchors, hashes)
        bit_weight_muls = bits * (channels + 1) if self.spec.bit_weights else 0
        return heads * (num_tokens * muls + bit_weight_muls), heads * num_tokens * adds

    def projections(self, where: str) -> Projections:
        if self.spec.qk == "separate":
            return super().projections(where)
        shared = super().projections(where)
        return replace(shared, key=trained_as(linear_of(self.key_weight, self.key_bias), shared.query))
