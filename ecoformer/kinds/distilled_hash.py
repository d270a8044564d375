"""Distilled hashing: linear attention on 0/1 codes, fitted to the output of the attention that it replaces.

Measured in docs/distilled_hash.md. Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.taught import TaughtAttention, TaughtSpec
from ecoformer.fit.teacher import Teacher, affine, store_affine
from ecoformer.nn.base import attention_kind
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.nn.precision import full_precision, without_autocast
from ecoformer.nn.projections import Projections, read_projections
from ecoformer.nn.specs import one_of
from ecoformer.ops.codes.attention import binary_attention, binary_weights
from ecoformer.ops.codes.distilled import (
    DistilledHash,
    FittedValues,
    Standardiser,
    annealed_slope,
    random_distilled_hash,
)
from ecoformer.ops.codes.folded import distilled_attention, token_codes


@dataclass(frozen=True)
class DistilledHashSpec(TaughtSpec):
    """Attention on 0/1 codes of the tokens themselves, fitted to the attention output that it replaces.

    Args:
        num_bits: code length K per head.
        relaxation: what stands for the step while codes are fitted. "sigmoid" sharpens a sigmoid until it is all but a
            step; "straight_through" keeps the step and gives it a gradient. Training takes the second in any case.
    """

    name = "distilled_hash"

    num_bits: int = 16
    relaxation: Literal["sigmoid", "straight_through"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_whole(1, "num_bits")
        one_of("relaxation", self.relaxation, ("sigmoid", "straight_through"))

    def is_met_by(self, module: nn.Module) -> bool:
        """What is fitted stays so: the settings of the fit no longer matter then."""
        if not isinstance(module, DistilledHashAttention):
            return False
        return module.spec == self or (module.is_fitted and module.num_bits == self.num_bits)


@attention_kind(DistilledHashSpec)
class DistilledHashAttention(TaughtAttention):
    """Linear attention with one projection per token, to the bits of its codes.

    The weight of key j for query i is sum_b s_b q_ib k_jb + floor, with s_b > 0 per head and bit and a floor > 0 per
    head. `codes` holds the bits of all heads' queries, then those of their keys; `to_v` and `proj` are those of the
    replaced layer and are applied to sums of tokens only (see `ops.distilled_attention`). All of them are trained by
    the gradient, the bits by the straight-through estimator.
    """

    shows_codes = True
    new_parts = ("codes", "log_weight", "log_floor")
    spec: DistilledHashSpec
    ones: Tensor

    def add_parts(self, source: Projections | None) -> None:
        super().add_parts(source)
        factory: dict[str, Any] = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        bits = self.num_heads * self.num_bits
        self.codes = nn.Linear(self.dim, 2 * bits, **factory)
        # One dimension each: timm's optimizers decay nothing of one dimension.
        self.log_weight = nn.Parameter(torch.zeros(bits, **factory))
        self.log_floor = nn.Parameter(torch.zeros(self.num_heads, **factory))
        # Share of ones in the codes of queries and of keys, on the images of the fit: what sums of rows really cost.
        self.register_buffer("ones", torch.ones(2, device=factory["device"]))
        self._slope: float | None = None

    @property
    def num_bits(self) -> int:
        return self.spec.num_bits

    @property
    def slope_at(self) -> Callable[[float], float] | None:
        return annealed_slope if self.spec.relaxation == "sigmoid" else None

    def anneal(self, done: float | None) -> None:
        self._slope = None if done is None or self.slope_at is None else self.slope_at(done)

    def _bit_weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """s (H, K) and floor (H,), above 0."""
        weight_HK = self.log_weight.to(dtype).exp().unflatten(0, (self.num_heads, self.num_bits))
        return weight_HK, self.log_floor.to(dtype).exp()

    def projected_output(self, x_BND: Tensor, feat_size: Any = None) -> Tensor:
        """In float32 under autocast. Raises InputError if the codes were never fitted."""
        self.require_fitted()
        x = full_precision(x_BND)
        with without_autocast(x_BND):
            to_codes, value, proj = (affine(linear).like(x) for linear in (self.codes, self.to_v, self.proj))
            out_BND = distilled_attention(x, to_codes, value, proj, *self._bit_weights(x.dtype), self._slope)
        return out_BND.to(x_BND.dtype)

    def _codes_and_weights(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.require_fitted()
        x = full_precision(x_BND)
        code_q, code_k = (
            split_heads(code_BNL, self.num_heads) for code_BNL in token_codes(x, affine(self.codes).like(x))
        )
        return code_q, code_k, *self._bit_weights(x.dtype)

    def signed_codes(self, x_BND: Tensor) -> Tensor:
        with without_autocast(x_BND):
            codes = token_codes(full_precision(x_BND), affine(self.codes).like(full_precision(x_BND)))
        return torch.cat([2 * split_heads(code_BNL, self.num_heads).float() - 1 for code_BNL in codes])

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        with without_autocast(x_BND):
            return binary_weights(*self._codes_and_weights(x_BND))

    def attention_output(self, x_BND: Tensor, feat_size: Any = None) -> Tensor:
        """The output before the output projection, (B, N, D), which `forward` never forms."""
        with without_autocast(x_BND):
            code_q, code_k, weight_HK, floor_H = self._codes_and_weights(x_BND)
            x = full_precision(x_BND)
            v_BHNC = split_heads(affine(self.to_v).like(x)(x), self.num_heads)
            return join_heads(binary_attention(code_q, code_k, v_BHNC, weight_HK, floor_H))

    def start(
        self, x_BND: Tensor, standard: Standardiser, generator: torch.Generator, teacher: Teacher
    ) -> DistilledHash:
        query, key = (standard.unfold(projection.like(x_BND)) for projection in (teacher.query, teacher.key))
        start = random_distilled_hash(x_BND, query, key, self.num_heads, self.num_bits, generator)
        if not teacher.fits_values:
            return start
        value = standard.unfold(affine(self.to_v).like(x_BND))
        return replace(start, values=FittedValues.of(value, self.num_heads))

    def store(self, fitted: DistilledHash, standard: Standardiser, x_BND: Tensor) -> None:
        store_affine(self.codes, standard.fold(fitted.to_codes))
        if fitted.values is not None:
            store_affine(self.to_v, standard.fold(fitted.values.affine))
        self.log_weight.copy_(fitted.weight_HK.log().flatten())
        self.log_floor.copy_(fitted.floor_H.log())
        self.ones.copy_(torch.stack([codes.mean() for codes in fitted.codes(x_BND)]))

    @torch.no_grad()
    def measure(self, x_BND: Tensor) -> None:
        """The share of ones in the codes of these inputs."""
        codes = self._codes_and_weights(x_BND)[:2]
        self.ones.copy_(torch.stack([code.float().mean() for code in codes]))

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """(multiplications, additions) of one image's attention in the paper's way of accounting.

        With L = H K bits. Per token, both: 2 L D for the bits, which are all that is left of the projections.
        Additions: 2 L D for rows picked by codes, summed to the context and to the output, 2 L for the counts and the
        denominators, D for the token mean. Multiplications: H D + H for 1 / denominator and the scaling of each head's
        sum by it. Per image, both: 2 L D C for values and output projection of the L sums, 2 D D for those of the mean;
        and the weights of the bits, L (C + 1) multiplications. Nothing of the layer lies outside of this core.
        """
        dim, heads, channels, bits = self.dim, self.num_heads, self.head_dim, self.num_heads * self.num_bits
        both = num_tokens * 2 * bits * dim + 2 * bits * dim * channels + 2 * dim * dim
        muls = both + num_tokens * heads * (dim + 1) + bits * (channels + 1)
        adds = both + num_tokens * (2 * bits * dim + 2 * bits + dim)
        return muls, adds

    def projections(self, where: str) -> Projections:
        """Those of the layer that it is to learn from."""
        if self.teacher is None:
            raise InputError(
                f"{where}: a fitted distilled hash of {self.num_bits} bits holds no queries and keys to convert: start "
                "from the MSA or the stock checkpoint"
            )
        return read_projections(self.teacher.layer, where)
