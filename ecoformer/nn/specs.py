"""Attention specs: one frozen dataclass per attention kind, registered under the name that configs use.

A kind is one file in this package: a spec with `@register_spec`, a module with `@builds(Spec)`, and a reader with
`@register_reader` (see `projections`) where the module can be converted further.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from torch import nn

from ecoformer.errors import InputError

SPECS: dict[str, type[AttentionSpec]] = {}
BUILDERS: dict[type[AttentionSpec], Any] = {}  # the module class, a ReplacementAttention
SpecT = TypeVar("SpecT", bound="type[AttentionSpec]")
ModuleT = TypeVar("ModuleT", bound="type[nn.Module]")


def register_spec(name: str) -> Callable[[SpecT], SpecT]:
    """Make a spec class known as `attention=NAME`."""

    def decorate(cls: SpecT) -> SpecT:
        cls.name = name
        SPECS[name] = cls
        return cls

    return decorate


def builds(spec: type[AttentionSpec]) -> Callable[[ModuleT], ModuleT]:
    """Make a module class the one that `spec` asks for."""

    def decorate(cls: ModuleT) -> ModuleT:
        BUILDERS[spec] = cls
        return cls

    return decorate


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless an option of a spec is one of `choices`."""
    if value not in choices:
        raise InputError(f"attention.{key}={value!r} must be {', '.join(choices[:-1])} or {choices[-1]}")


@dataclass(frozen=True)
class AttentionSpec:
    """What every attention kind has: a name, and a way to refuse token counts that it cannot work with."""

    name: ClassVar[str] = ""

    def fit_to_tokens(self, num_tokens: int, where: str) -> AttentionSpec:
        """The spec to use for a layer with `num_tokens` tokens; raises InputError if it cannot work there.

        `where` names the layer in messages, for example "stage 3 (stages.2.blocks.0.attn)".
        """
        return self

    def is_met_by(self, module: nn.Module) -> bool:
        """Whether a layer already is what this spec asks for."""
        return type(module) is BUILDERS[type(self)] and getattr(module, "spec", None) == self


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
