"""Distilled hashing: linear attention on 0/1 codes, fitted to the output of the attention that it replaces.

Measured in docs/distilled_hash.md. Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.hashing import NEVER_FITTED, FittableAttention, HashFitReport, bit_statistics, finite_images
from ecoformer.nn.heads import refuse_mask, split_heads
from ecoformer.nn.msa import MSASpec, MultiHeadSelfAttention
from ecoformer.nn.precision import full_precision, without_autocast
from ecoformer.nn.projections import Projections, linear_from, read_projections, register_reader
from ecoformer.nn.specs import AttentionSpec, builds, register_spec
from ecoformer.nn.teacher import Teacher
from ecoformer.ops.attention_quality import relative_error
from ecoformer.ops.binary_attention import binary_attention, binary_weights
from ecoformer.ops.distilled_attention import Affine, distilled_attention, token_codes
from ecoformer.ops.distilled_fit import DistilledHash, Standardiser, random_distilled_hash
from ecoformer.ops.output_fit import fit_to_output

NO_TEACHER = (
    "a distilled hash is fitted once, to the attention that it replaces, which is dropped afterwards: to fit anew, "
    "convert the original model again"
)


@register_spec("distilled_hash")
@dataclass(frozen=True)
class DistilledHashSpec(AttentionSpec):
    """Attention on 0/1 codes of the tokens themselves, fitted to the attention output that it replaces.

    Args:
        num_bits: code length K per head.
        fit_values: "true" fits the value projection too, "false" keeps it; "auto" fits it where the replaced attention
            does not sum the values of all tokens (SRA of PVTv2, LSA and GSA of Twins).
        fit_lr, fit_steps, fit_batch_size: Adam over all bits at once; fit_steps=0 leaves random codes.
    """

    num_bits: int = 16
    fit_values: Literal["auto", "true", "false"] = "auto"
    fit_lr: float = 0.03
    fit_steps: int = 400
    fit_batch_size: int = 16

    def __post_init__(self) -> None:
        for key, least in (("num_bits", 1), ("fit_steps", 0), ("fit_batch_size", 1)):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"attention.{key}={value!r} must be a whole number of at least {least}")
        if isinstance(self.fit_values, bool):  # YAML reads the words so
            object.__setattr__(self, "fit_values", str(self.fit_values).lower())
        if self.fit_values not in ("auto", "true", "false"):
            raise InputError(f"attention.fit_values={self.fit_values!r} must be auto, true or false")
        if not 0 < self.fit_lr < float("inf"):
            raise InputError(f"attention.fit_lr={self.fit_lr!r} must be a finite number above 0")

    def is_met_by(self, module: nn.Module) -> bool:
        """What is fitted stays so: the settings of the fit no longer matter then."""
        if not isinstance(module, DistilledHashAttention):
            return False
        return module.spec == self or (module.is_fitted and module.num_bits == self.num_bits)


@builds(DistilledHashSpec)
class DistilledHashAttention(ReplacementAttention, FittableAttention):
    """Linear attention with one projection per token, to the bits of its codes.

    The weight of key j for query i is sum_b s_b q_ib k_jb + floor, with s_b > 0 per head and bit and a floor > 0 per
    head. `codes` holds the bits of all heads' queries, then those of their keys; `to_v` and `proj` are those of the
    replaced layer and are applied to sums of tokens only (see `ops.distilled_attention`). All of them are trained by
    the gradient, the bits by the straight-through estimator.

    The replaced layer is kept, outside of the module tree and the state dict, until the codes are fitted to it.
    """

    carries = ("value", "proj")
    new_parts = ("codes", "log_weight", "log_floor")
    fits_parameters = True
    spec: DistilledHashSpec
    ones: Tensor
    fitted: Tensor
    fit_count: Tensor

    def __init__(self, source: Projections, spec: DistilledHashSpec) -> None:
        super().__init__(source.dim, source.num_heads, spec)
        device = source.proj.weight.device
        factory: dict[str, Any] = {"device": device, "dtype": source.proj.weight.dtype}
        bits = self.num_heads * spec.num_bits
        self.codes = nn.Linear(self.dim, 2 * bits, **factory)
        # One dimension each: timm's optimizers decay nothing of one dimension.
        self.log_weight = nn.Parameter(torch.zeros(bits, **factory))
        self.log_floor = nn.Parameter(torch.zeros(self.num_heads, **factory))
        self.to_v = linear_from(source.value)
        self.proj = linear_from(source.proj)
        self.proj_drop = nn.Dropout(source.proj_drop)
        # Share of ones in the codes of queries and of keys, on the images of the fit: what sums of rows really cost.
        self.register_buffer("ones", torch.ones(2, device=device))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("fit_count", torch.zeros((), dtype=torch.int64, device=device))
        self._known_fitted = False
        self._teacher: Teacher | None = _teacher_from(source, spec)

    @classmethod
    def from_projections(cls, source: Projections, spec: DistilledHashSpec) -> DistilledHashAttention:
        """Values and output projection carry over. Raises InputError if the source has no keys."""
        return cls(source, spec)

    @property
    def num_bits(self) -> int:
        return self.spec.num_bits

    @property
    def is_fitted(self) -> bool:
        """Whether codes were fitted. The flag is read from the device until it is set; meta tensors count as fitted."""
        if not self._known_fitted and not self.fitted.is_meta and bool(self.fitted):
            self._known_fitted = True
            self._teacher = None
        return self._known_fitted or self.fitted.is_meta

    def _require_fitted(self) -> None:
        if not self.is_fitted:
            raise InputError(NEVER_FITTED)

    def _bit_weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """s (H, K) and floor (H,), above 0."""
        weight_HK = self.log_weight.to(dtype).exp().unflatten(0, (self.num_heads, self.num_bits))
        return weight_HK, self.log_floor.to(dtype).exp()

    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D), in float32 under autocast. `feat_size` is what timm's blocks pass; masks are refused.

        Raises InputError if the codes were never fitted.
        """
        refuse_mask(self, attn_mask, is_causal)
        self._require_fitted()
        x = full_precision(x_BND)
        with without_autocast(x_BND):
            to_codes, value, proj = (affine(linear).like(x) for linear in (self.codes, self.to_v, self.proj))
            out_BND = distilled_attention(x, to_codes, value, proj, *self._bit_weights(x.dtype))
        return self.proj_drop(out_BND.to(x_BND.dtype))

    def _codes_and_weights(self, x_BND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._require_fitted()
        x = full_precision(x_BND)
        code_q, code_k = (
            split_heads(code_BNL, self.num_heads) for code_BNL in token_codes(x, affine(self.codes).like(x))
        )
        return code_q, code_k, *self._bit_weights(x.dtype)

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        with without_autocast(x_BND):
            return binary_weights(*self._codes_and_weights(x_BND))

    def attention_output(self, x_BND: Tensor) -> Tensor:
        """The output before the output projection, (B, N, D), which `forward` never forms."""
        with without_autocast(x_BND):
            code_q, code_k, weight_HK, floor_H = self._codes_and_weights(x_BND)
            x = full_precision(x_BND)
            v_BHNC = split_heads(affine(self.to_v).like(x)(x), self.num_heads)
            return binary_attention(code_q, code_k, v_BHNC, weight_HK, floor_H).transpose(1, 2).flatten(2)

    def refit_refusal(self) -> str:
        return NO_TEACHER if self._teacher is None or self.is_fitted else ""

    def fit_on_call(self, args: Sequence[Any], generator: torch.Generator) -> HashFitReport:
        return self.fit_hash(args[0], generator, feat_size=args[1] if len(args) > 1 else None)

    @torch.no_grad()
    def fit_hash(self, x_BND: Tensor, generator: torch.Generator, feat_size: Any = None) -> HashFitReport:
        """Fit the codes to the replaced attention on these inputs, and drop it.

        Images with NaN or infinite features are left out. A head whose error does not fall below that of random codes
        keeps those; `accepted_bits` is K times the share of the others, rounded down, and `failed_bits` likewise counts
        heads that met NaN. The objective is the squared relative error of the attention output.

        Args:
            feat_size: height and width of the feature map, where the replaced attention needs them.
        Raises:
            InputError: the replaced attention is gone, or no image has finite features.
        """
        started = time.perf_counter()
        teacher = self._teacher
        if teacher is None or self.is_fitted:
            raise InputError(NO_TEACHER)
        spec, num_images = self.spec, len(x_BND)
        with without_autocast(x_BND):
            (x_BND,) = finite_images([full_precision(x_BND)])
            target_BHNC = split_heads(teacher.output(x_BND, feat_size, spec.fit_batch_size), self.num_heads)
            value = affine(self.to_v).like(x_BND)
            values = split_heads(value(x_BND), self.num_heads)
            uniform_error = relative_error(values.mean(dim=2, keepdim=True).expand_as(target_BHNC), target_BHNC)
            standard = Standardiser.of(x_BND)
            x_BND = standard(x_BND)
            start = random_distilled_hash(
                x_BND,
                standard.unfold(teacher.query.like(x_BND)),
                standard.unfold(teacher.key.like(x_BND)),
                self.num_heads,
                spec.num_bits,
                generator,
            )
            inputs = [x_BND, values]
            if teacher.fits_values:
                start, inputs = start.with_values(standard.unfold(value)), [x_BND]
            fit = fit_to_output(
                start,
                inputs,
                target_BHNC,
                generator,
                lr=spec.fit_lr,
                steps=spec.fit_steps,
                batch_size=spec.fit_batch_size,
            )
            hashing = fit.hashing
            self._store(hashing, standard)
            old, new = (torch.stack(h.codes(x_BND)) for h in (start, hashing))
            self.ones.copy_(new.mean(dim=(1, 2, 3, 4)))
            balance, correlation = bit_statistics(2 * new.flatten(0, 1) - 1)
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
                skipped_images=num_images - len(x_BND),
                attention_error=relative_error(hashing.attend(*inputs), target_BHNC),
                random_error=relative_error(start.attend(*inputs), target_BHNC),
                uniform_error=uniform_error,
            )

    def _store(self, hashing: DistilledHash, standard: Standardiser) -> None:
        """Fold the fitted hash into the layer's own parameters, in place, and let the teacher go."""
        found = [(self.codes, standard.fold(hashing.to_codes))]
        if hashing.value is not None:
            found.append((self.to_v, standard.fold(hashing.value)))
        for linear, new in found:
            linear.weight.copy_(new.weight)
            if new.bias is not None:
                linear.bias.copy_(new.bias)
        self.log_weight.copy_(hashing.weight_HK.log().flatten())
        self.log_floor.copy_(hashing.floor_H.log())
        self.fitted.fill_(True)
        self.fit_count.add_(1)
        self._known_fitted, self._teacher = True, None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        # The weights that come are those of another model than the teacher's.
        super()._load_from_state_dict(*args, **kwargs)
        self._known_fitted, self._teacher = False, None

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


def affine(linear: nn.Linear) -> Affine:
    """A Linear's tensors, for `ops`."""
    return Affine(linear.weight, linear.bias)


def _teacher_from(source: Projections, spec: DistilledHashSpec) -> Teacher:
    if source.key is None:
        raise InputError(
            f"{source.where}: a shared query and key projection is no attention to fit {spec.name} to: start from the "
            "MSA or the stock checkpoint"
        )
    layer = source.layer or MultiHeadSelfAttention.from_projections(source, MSASpec())
    sums_all_values = MSASpec().is_met_by(layer)
    fits_values = not sums_all_values if spec.fit_values == "auto" else spec.fit_values == "true"
    if fits_values and source.value.bias is None:
        raise InputError(f"{source.where} has values without a bias: set attention.fit_values=false")
    return Teacher(layer, affine(source.query), affine(source.key), fits_values)


@register_reader(DistilledHashAttention)
def _read(module: DistilledHashAttention, where: str) -> Projections:
    if module._teacher is None or module.is_fitted:
        raise InputError(
            f"{where}: a fitted distilled hash of {module.num_bits} bits holds no queries and keys to convert: start "
            "from the MSA or the stock checkpoint"
        )
    return read_projections(module._teacher.layer, where)
