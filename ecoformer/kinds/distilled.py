"""Distilled codes: linear attention on codes of the tokens themselves, fitted to the attention that it replaces.

Measured in docs/distilled_hash.md.
Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code length.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.taught import TaughtAttention, TaughtSpec
from ecoformer.fit.teacher import Teacher, affine, store_affine
from ecoformer.nn.bare import require_weights_alone
from ecoformer.nn.base import attention_kind
from ecoformer.nn.coded import CodedLinear
from ecoformer.nn.heads import join_heads, real_tokens, split_heads
from ecoformer.nn.power_linear import PowerLinear, with_powers
from ecoformer.nn.projections import Projections, read_projections
from ecoformer.nn.specs import MOST_CODES, one_of
from ecoformer.nn.ternary import TernaryLinear
from ecoformer.ops.codes.attention import binary_attention, binary_weights
from ecoformer.ops.codes.distilled import (
    DistilledHash,
    FittedValues,
    Rounding,
    Standardiser,
    annealed_slope,
    random_distilled_hash,
)
from ecoformer.ops.codes.folded import Affine, distilled_attention, token_codes
from ecoformer.ops.codes.forms import BITS, CodeForm, Shifts
from ecoformer.ops.codes.ternary import TernaryAffine
from ecoformer.ops.precision import full_precision, without_autocast

LEVELS = 16
LINEARS: dict[str, Any] = {"real": nn.Linear, "ternary": TernaryLinear, "shift": PowerLinear}  # by `projection`
MOST_LEVELS = 48  # 2^23 squared, 8,192 tokens and as many features together stay far below 2^127


@dataclass(frozen=True)
class DistilledSpec(TaughtSpec):
    """Attention on codes of the tokens themselves, fitted to the attention output that it replaces.

    Args:
        codes: "shift" makes a code of powers of two, "bits" of 0 and 1.
        num_features: code length K per head.
        levels: exponents of a power of two, around zero: 16 are -8 to 7. Not of bits.
        projection: takes the products out of the projection to codes: weights of "ternary" are -1, 0 or +1 times one
            scale a feature, those of "shift" signed powers of two.
        values: "shift" makes the weights of value and output projection signed powers of two, as `msa_shift` does; a
            joint fit changes them too.
        relaxation: what stands for the step of bits while they are fitted. "sigmoid" sharpens a sigmoid until it is all
            but a step; "straight_through" keeps the step and gives it a gradient, as training does, and as fits of
            powers of two do.
    """

    name = "distilled"

    codes: Literal["shift", "bits"] = "shift"
    num_features: int = 16
    levels: int = LEVELS
    projection: Literal["real", "ternary", "shift"] = "real"
    values: Literal["real", "shift"] = "real"
    fit_lr: float = 0.01
    relaxation: Literal["sigmoid", "straight_through"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("codes", self.codes, ("shift", "bits"))
        one_of("projection", self.projection, tuple(LINEARS))
        one_of("values", self.values, ("real", "shift"))
        one_of("relaxation", self.relaxation, ("sigmoid", "straight_through"))
        self.require_whole(1, "num_features", most=MOST_CODES)
        self.require_whole(2, "levels")
        if self.codes == "bits" and self.levels != LEVELS:
            raise InputError(f"attention.levels={self.levels} is of codes=shift, bits have two: leave it out")
        if self.levels > MOST_LEVELS:
            raise InputError(
                f"attention.levels={self.levels} must be at most {MOST_LEVELS}: larger powers of two overflow in sums"
            )

    def is_met_by(self, module: nn.Module) -> bool:
        """What is fitted stays so: the settings of the fit no longer matter then."""
        if not isinstance(module, DistilledAttention):
            return False
        return module.spec == self or (module.is_fitted and module.spec.shape == self.shape)

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a fitted layer is made of."""
        return self.codes, self.num_features, self.projection, self.values, self.form

    @property
    def form(self) -> CodeForm:
        return BITS if self.codes == "bits" else Shifts.of(self.levels)


@attention_kind(DistilledSpec)
class DistilledAttention(TaughtAttention):
    """Linear attention with one projection per token, to the code.

    The weight of key j for query i is sum_b s_b q_ib k_jb + floor, with a floor > 0 per head, and s_b > 0 per head and
    bit; powers of two have no s, the bias of their exponent is as much. `codes` projects to all heads' queries, then
    their keys; `to_v` and `proj` are those of the replaced layer and are applied to sums of tokens only (see
    `ops.distilled_attention`). All of them are trained by the gradient, codes by the straight-through estimator.
    """

    takes_mask = True
    shows_codes = True
    spec: Any

    def add_parts(self, source: Projections | None) -> None:
        super().add_parts(source)
        factory: dict[str, Any] = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
        codes = self.num_heads * self.num_features
        self.codes = LINEARS[self.spec.projection](self.dim, 2 * codes, **factory)
        if self.spec.values == "shift":
            self.to_v, self.proj = with_powers(self.to_v), with_powers(self.proj)
        is_bits = self.spec.codes == "bits"
        self.new_parts = ("codes", *["log_weight"] * is_bits, "log_floor")
        # One dimension each: timm's optimizers decay nothing of one dimension.
        if is_bits:
            self.log_weight = nn.Parameter(torch.zeros(codes, **factory))
            # Share of ones in codes of queries and of keys, on the images of the fit: what sums of rows really cost.
            self.register_buffer("ones", torch.ones(2, device=factory["device"]))
        self.log_floor = nn.Parameter(torch.zeros(self.num_heads, **factory))
        self._slope: float | None = None

    @property
    def num_features(self) -> int:
        return int(self.spec.num_features)

    num_bits = num_features  # as fits and reports of all hash kinds call it

    @property
    def slope_at(self) -> Callable[[float], float] | None:
        soft = self.spec.codes == "bits" and self.spec.relaxation == "sigmoid"
        return annealed_slope if soft else None

    def anneal(self, done: float | None) -> None:
        self._slope = None if done is None or self.slope_at is None else self.slope_at(done)
        if done is None:
            for part in self.children():
                if isinstance(part, CodedLinear):
                    part.settle()

    def jointly_fitted(self) -> list[nn.Parameter]:
        rounded = (self.to_v, self.proj) if self.spec.values == "shift" else ()
        return [*super().jointly_fitted(), *(parameter for linear in rounded for parameter in linear.parameters())]

    def _to_codes(self, x: Tensor) -> Affine | TernaryAffine:
        found: Affine | TernaryAffine = affine(self.codes).like(x)
        return found

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """s (H, K), None where all are 1, and floor (H,), above 0."""
        floor_H = self.log_floor.to(dtype).exp()
        if self.spec.codes != "bits":
            return None, floor_H
        return self.log_weight.to(dtype).exp().unflatten(0, (self.num_heads, self.num_features)), floor_H

    def projected_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """In float32 under autocast. Raises InputError if the codes were never fitted; see `require_weights_alone`."""
        self.require_fitted()
        require_weights_alone(self.codes, self.to_v, self.proj)
        x = full_precision(x_BND)
        with without_autocast(x_BND):
            value, proj = (affine(linear).like(x) for linear in (self.to_v, self.proj))
            weights, form = self._weights(x.dtype), self.spec.form
            out_BND = distilled_attention(x, self._to_codes(x), value, proj, *weights, self._slope, form, mask_BN)
        return out_BND.to(x_BND.dtype)

    def _codes_and_weights(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        self.require_fitted()
        x = full_precision(x_BND)
        return *self._codes_in(self.spec.form, x), *self._weights(x.dtype)

    def _codes_in(self, form: CodeForm, x_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Of queries and keys, (B, H, N, K) each."""
        code_q, code_k = token_codes(x_BND, self._to_codes(x_BND), form)
        return split_heads(code_q, self.num_heads), split_heads(code_k, self.num_heads)

    def signed_codes(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        with without_autocast(x_BND):
            return torch.cat([2 * code.float() - 1 for code in self._codes_in(BITS, full_precision(x_BND))])

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        with without_autocast(x_BND):
            return binary_weights(*self._codes_and_weights(x_BND))

    def attention_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """(B, N, D), which `forward` never forms."""
        with without_autocast(x_BND):
            code_q, code_k, weight_HK, floor_H = self._codes_and_weights(x_BND)
            x = full_precision(x_BND)
            v_BHNC = split_heads(affine(self.to_v).like(x)(x), self.num_heads)
            return join_heads(binary_attention(code_q, code_k, v_BHNC, weight_HK, floor_H, mask_BN))

    def start(
        self, x_BND: Tensor, standard: Standardiser, generator: torch.Generator, teacher: Teacher
    ) -> DistilledHash:
        require_weights_alone(self.codes, self.to_v, self.proj)
        query, key = (standard.unfold(projection.like(x_BND)) for projection in (teacher.query, teacher.key))
        sizes, weighted = (self.num_heads, self.num_features), self.spec.codes == "bits"
        value = standard.unfold(affine(self.to_v).like(x_BND))
        to_codes, to_values = (_rounding(how, standard) for how in (self.spec.projection, self.spec.values))
        return replace(
            random_distilled_hash(x_BND, query, key, *sizes, generator, weighted=weighted),
            form=self.spec.form,
            rounding=to_codes,
            values=FittedValues.of(value, self.num_heads, to_values) if teacher.fits_values else None,
        )

    def store(self, fitted: DistilledHash, standard: Standardiser, x_BND: Tensor) -> None:
        store_affine(self.codes, standard.fold(fitted.to_codes))
        if fitted.values is not None:
            store_affine(self.to_v, standard.fold(fitted.values.affine))
        self.log_floor.copy_(fitted.floor_H.log())
        if fitted.weight_HK is not None:
            self.log_weight.copy_(fitted.weight_HK.log().flatten())
            self._measure_ones(fitted.codes(x_BND))

    @torch.no_grad()
    def note_shares(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> None:
        """The share of ones in bits of these inputs."""
        if self.spec.codes == "bits":
            self._measure_ones(tuple(real_tokens(code, mask_BN) for code in self._codes_and_weights(x_BND)[:2]))

    def _measure_ones(self, codes: tuple[Tensor, ...]) -> None:
        self.get_buffer("ones").copy_(torch.stack([code.float().mean() for code in codes]))

    def paper_core_ops(self, num_tokens: int) -> tuple[int, ...]:
        """(multiplications, additions, shifts) of one image's attention in the paper's way of accounting.

        With L = H K codes. Per token, both: 2 L D for the codes, which are all that is left of the projections;
        ternary, 2 L multiplications by their scale alone, and an addition for each weight, 0 or not; by powers of two,
        shifts instead of the multiplications. Additions: 2 L D for rows picked by codes, summed to the context and to
        the output, 2 L for the counts and the denominators, D for the token mean; each of the first two a shift too
        where codes are powers of two. Multiplications: H D + H for 1 / denominator and the scaling of each head's sum
        by it. Per image, both: 2 L D C for values and output projection of the L sums, 2 D D for those of the mean,
        shifts instead of multiplications where their weights are powers of two; and the weights of bits, L (C + 1)
        multiplications. Nothing of the layer lies outside of this core.
        """
        dim, heads, channels, codes = self.dim, self.num_heads, self.head_dim, self.num_heads * self.num_features
        products = 2 * codes * dim
        code_muls = 2 * codes if self.spec.projection == "ternary" else products
        sums = products + 2 * codes
        both = products * channels + 2 * dim * dim
        is_bits = self.spec.codes == "bits"
        shifted = both if self.spec.values == "shift" else 0
        code_shifts = products if self.spec.projection == "shift" else 0
        per_token = code_muls - code_shifts + heads * (dim + 1)
        muls = both - shifted + num_tokens * per_token + is_bits * codes * (channels + 1)
        adds = both + num_tokens * (products + sums + dim)
        shifts = shifted + num_tokens * (code_shifts + (0 if is_bits else sums))
        return (muls, adds, shifts) if shifts else (muls, adds)

    def projections(self, where: str) -> Projections:
        if self.teacher is None:  # the layer that it is to learn from
            raise InputError(
                f"{where}: {self.spec.setting()} was fitted and holds no queries and keys to convert: keep these "
                "settings, or start from the MSA or the stock checkpoint"
            )
        return read_projections(self.teacher.layer, where)


def _rounding(how: str, standard: Standardiser) -> Rounding | None:
    """Of weights that are "real" none, else to what the linear layer of that name holds."""
    return None if how == "real" else Rounding(LINEARS[how].straight_through, standard.deviation_D)
