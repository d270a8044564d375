"""Attention specs: one frozen dataclass per attention kind, known under the name that configs use.

A kind is one file: a spec with a name, and a module with `@attention_kind(Spec)` (see `base`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

import yaml
from torch import nn

from ecoformer.errors import InputError, first_line, is_whole

NUMBER_WITHOUT_POINT = re.compile(r"\s*[-+]?\d+[eE][-+]?\d+\s*")  # YAML 1.1 reads 1e-5 as text
MOST_CODES = 4096  # bits or features of a token, which has hundreds of channels
SPECS: dict[str, type[AttentionSpec]] = {}
_LISTENERS: list[Callable[[str], None]] = []


def announce(spec: type[AttentionSpec]) -> None:
    SPECS[spec.name] = spec
    for listener in _LISTENERS:
        listener(spec.name)


def on_each_kind(listener: Callable[[str], None]) -> None:
    """Call `listener` with the name of every kind that is known, and of those to come: a user's own, say."""
    _LISTENERS.append(listener)
    for name in SPECS:
        listener(name)


def one_of(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless an option of a spec is one of `choices`."""
    if value not in choices:
        raise InputError(f"attention.{key}={value!r} must be {', '.join(choices[:-1])} or {choices[-1]}")


def number(value: object) -> float:
    """A value as a float; NaN, which is in no range, if it is no number."""
    return float(value) if isinstance(value, Real) else math.nan


@dataclass(frozen=True)
class AttentionSpec:
    """What every attention kind has: a name, and a way to refuse token counts that it cannot work with."""

    name: ClassVar[str] = ""
    removed: ClassVar[Mapping[str, object]] = {}  # options of old checkpoints: what they were where nobody chose them

    def require_whole(self, least: int, *keys: str, most: float = math.inf) -> None:
        """Raise InputError unless the options named are whole numbers within these limits; None where it is default."""
        for key in keys:
            value, may_be_none = getattr(self, key), getattr(type(self), key) is None
            if value is None and may_be_none:
                continue
            if not is_whole(value) or value < least:
                end = ", or null" if may_be_none else ""
                raise InputError(f"attention.{key}={value!r} must be a whole number of at least {least}{end}")
            if value > most:
                raise InputError(f"attention.{key}={value} must be at most {most}")
            object.__setattr__(self, key, int(value))  # NumPy's would follow it into files

    def require_positive(self, *keys: str) -> None:
        """Raise InputError unless the options named are finite numbers above 0."""
        for key in keys:
            if not 0 < number(getattr(self, key)) < math.inf:
                raise InputError(f"attention.{key}={getattr(self, key)!r} must be a finite number above 0")

    def require_flags(self, *keys: str) -> None:
        """Raise InputError unless the options named are True or False."""
        for key in keys:
            if not isinstance(getattr(self, key), bool):
                raise InputError(f"attention.{key}={getattr(self, key)!r} must be true or false")

    def fit_to_tokens(self, num_tokens: int, where: str) -> AttentionSpec:
        """The spec to use for a layer with `num_tokens` tokens; raises InputError if it cannot work there.

        `where` names the layer in messages, for example "stage 3 (stages.2.blocks.0.attn)".
        """
        return self

    def setting(self) -> str:
        """The spec as `split_setting` reads it, options that have their defaults left out."""
        chosen = [
            f"{key.name}={getattr(self, key.name)}" for key in fields(self) if getattr(self, key.name) != key.default
        ]
        return f"{self.name}:{','.join(chosen)}" if chosen else self.name

    def is_met_by(self, module: nn.Module) -> bool:
        """Whether a layer already is what this spec asks for."""
        return getattr(module, "spec", None) == self


def without_removed(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an old checkpoint without those that are gone and had their default."""
    removed = SPECS[name].removed if name in SPECS else {}
    return {key: value for key, value in options.items() if key not in removed or value != removed[key]}


def split_setting(text: str) -> tuple[str, dict[str, Any]]:
    """The kind and the options of "KIND" or "KIND:key=value,...", values as in YAML. Raises InputError for others."""
    kind, _, listed = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, listed.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"setting {text!r}: {item!r} is no key=value; write it as ecoformer:num_bits=8")
        if key.strip() in options:
            raise InputError(f"setting {text!r} names {key.strip()} twice: give it once")
        try:
            options[key.strip()] = float(value) if NUMBER_WITHOUT_POINT.fullmatch(value) else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"setting {text!r}: {value!r} is no value: {first_line(error)}") from error
    return kind, options


def make_spec(name: str, options: Mapping[str, Any] | None = None) -> AttentionSpec | None:
    """The spec named in a config; None for "stock". Unknown names and options raise InputError."""
    options = without_removed(name, options or {})
    if name == "stock":
        if options:
            raise InputError(f"attention=stock takes no options, got {', '.join(sorted(options))}")
        return None
    if name not in SPECS:
        raise InputError(
            f"attention={name} does not exist; choose one of {', '.join(['stock', *SPECS])}, or name the "
            "module that brings it: plugins=[MODULE], or ECOFORMER_PLUGINS=MODULE in the environment"
        )
    cls = SPECS[name]
    known = [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean attention.{near[0]}?" if near else f"; known: {', '.join(known) or 'none'}"
            raise InputError(f"attention.{key} is not an option of attention={name}{hint}")
    return cls(**options)
