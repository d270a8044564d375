"""Attention specs: one frozen dataclass per attention kind, registered under the name that configs use."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

from ecoformer.errors import InputError

SPECS: dict[str, type[AttentionSpec]] = {}
SpecT = TypeVar("SpecT", bound="type[AttentionSpec]")


def register_spec(name: str) -> Callable[[SpecT], SpecT]:
    """Make a spec class known as `attention=NAME`."""

    def decorate(cls: SpecT) -> SpecT:
        cls.name = name
        SPECS[name] = cls
        return cls

    return decorate


@dataclass(frozen=True)
class AttentionSpec:
    """What every attention kind has: a name, and a way to refuse token counts that it cannot work with."""

    name: ClassVar[str] = ""

    def fit_to_tokens(self, num_tokens: int, where: str) -> AttentionSpec:
        """The spec to use for a layer with `num_tokens` tokens; raises InputError if it cannot work there.

        `where` names the layer in messages, for example "stage 3 (stages.2.blocks.0.attn)".
        """
        return self


@register_spec("msa")
@dataclass(frozen=True)
class MSASpec(AttentionSpec):
    """Plain multi-head softmax attention over all tokens (Vaswani et al., 2017)."""


@register_spec("ecoformer")
@dataclass(frozen=True)
class EcoFormerSpec(AttentionSpec):
    """Kernelised hash attention (Liu et al., EcoFormer, NeurIPS 2022). Defaults are the published setting.

    Args:
        num_bits: code length K per head.
        num_anchors: kernel anchors M per head, drawn from the tokens of one image.
        top_k: tokens counted as similar, and as dissimilar, when the hash is fitted; 2 * top_k <= tokens.
        numerator: "own_token" adds (K+1) * v_i as the official code does; "kernel" adds (K+1) * sum_j v_j,
            the normalised kernel attention that the denominator implies.
        fit_lr, fit_momentum, fit_steps: SGD of the hash fit, per bit.
        clamp: lower num_anchors and top_k to what the token count allows (and say so) instead of refusing.
    """

    num_bits: int = 16
    num_anchors: int = 25
    top_k: int = 10
    numerator: Literal["own_token", "kernel"] = "own_token"
    fit_lr: float = 5e-4
    fit_momentum: float = 0.9
    fit_steps: int = 100
    clamp: bool = False

    def __post_init__(self) -> None:
        for key in ("num_bits", "num_anchors", "top_k", "fit_steps"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"attention.{key}={value!r} must be a whole number of at least 1")
        if self.numerator not in ("own_token", "kernel"):
            raise InputError(f"attention.numerator={self.numerator!r} must be own_token or kernel")
        if not self.fit_lr > 0:
            raise InputError(f"attention.fit_lr={self.fit_lr!r} must be above 0")
        if not 0 <= self.fit_momentum < 1:
            raise InputError(f"attention.fit_momentum={self.fit_momentum!r} must lie in [0, 1)")

    def fit_to_tokens(self, num_tokens: int, where: str) -> EcoFormerSpec:
        from dataclasses import replace

        limits = {"num_anchors": num_tokens, "top_k": num_tokens // 2}
        too_large = {key: limit for key, limit in limits.items() if getattr(self, key) > limit}
        if not too_large:
            return self
        if self.clamp and num_tokens >= 2:
            return replace(self, **too_large)
        faults = " and ".join(
            f"num_anchors={self.num_anchors} > {num_tokens} tokens"
            if key == "num_anchors"
            else f"top_k={self.top_k} > half of {num_tokens} tokens"
            for key in too_large
        )
        remedies = " and ".join(f"attention.{key} to at most {limit}" for key, limit in too_large.items())
        raise InputError(
            f"{where} has {num_tokens} tokens: {faults}; raise data.img_size, lower {remedies}, "
            "or set attention.clamp=true"
        )


def make_spec(name: str, options: Mapping[str, Any] | None = None) -> AttentionSpec | None:
    """The spec named in a config; None for "stock". Unknown names and options raise InputError."""
    options = dict(options or {})
    if name == "stock":
        if options:
            raise InputError(f"attention=stock takes no options, got {', '.join(sorted(options))}")
        return None
    if name not in SPECS:
        raise InputError(f"attention={name} does not exist; choose one of {', '.join(['stock', *SPECS])}")
    cls = SPECS[name]
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean attention.{near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"
            raise InputError(f"attention.{key} is not an option of attention={name}{hint}")
    return cls(**options)
