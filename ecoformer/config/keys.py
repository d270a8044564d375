"""The keys of a schema: how one is declared, its dotted name, what it takes, and values checked against its limit."""

import copy
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from ecoformer.errors import InputError

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a value must satisfy, and the same in words: "KEY=VALUE must be WORDS"."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: float) -> Limit:
    return Limit(lambda value: low <= value, f"at least {low}")


def above(low: float) -> Limit:
    return Limit(lambda value: low < value, f"above {low}")


def between(low: float, high: float) -> Limit:
    return Limit(lambda value: low <= value <= high, f"between {low} and {high}")


SHARE = Limit(lambda value: 0 <= value < 1, "at least 0 and below 1")
FRACTION = Limit(lambda value: 0 < value <= 1, "above 0 and at most 1")


def key(default: Any, about: str = "", *, limit: Limit | None = None, choices: Sequence[str] = ()) -> Any:
    """A field of a schema: its default, what it is for, and what its value must satisfy (null always may)."""
    metadata = {"about": about, "limit": limit, "choices": choices}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: the types that it may have (more than one where null is allowed), its field, and what `key` says."""

    types: tuple[Any, ...]
    field: dataclasses.Field[Any]
    about: str = ""
    limit: Limit | None = None
    choices: Sequence[str] = ()

    @property
    def optional(self) -> bool:
        return type(None) in self.types

    @property
    def is_group(self) -> bool:
        """Whether it holds further keys."""
        return any(dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict for kind in self.types)

    @property
    def default(self) -> Any:
        """The field's default; a group's is an instance of its dataclass."""
        made = self.field.default_factory
        return self.field.default if made is dataclasses.MISSING else made()

    @property
    def item(self) -> Any:
        """The type of an item where the key takes a list, else None."""
        return next((typing.get_args(kind)[0] for kind in self.types if typing.get_origin(kind) is list), None)

    def expected(self, item: bool = False) -> str | None:
        """In words, what the key takes, or one item of it; None without a simple type."""
        words = [EXPECTED[kind] for kind in self.types if kind in EXPECTED]
        if words:
            return " or ".join(words + (["null"] if self.optional else []))
        if self.item not in EXPECTED:
            return None
        one = EXPECTED[self.item]
        return one if item else f"a list, each item {one}" + (", or null" if self.optional else "")


@functools.cache
def keys_of(schema: type) -> dict[str, Key]:
    """All keys of a schema, groups included, in order."""
    keys: dict[str, Key] = {}

    def visit(cls: type, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            keys[prefix + field.name] = Key(options, field, **field.metadata)
            if dataclasses.is_dataclass(hint):
                visit(typing.cast(type, hint), f"{prefix}{field.name}.")

    visit(schema, "")
    return keys


def check_limits(settings: Any, prefix: str = "") -> None:
    """Raise InputError for the first value of a schema's instance outside of what its key allows.

    Args:
        settings: a config, or one group of it.
        prefix: what stands before the names of a group, as "train.".
    """
    for name, known in keys_of(cast(Any, type(settings))).items():
        value = functools.reduce(getattr, name.split("."), settings)
        if value is None or (isinstance(value, str) and value == "???"):  # OmegaConf's mark of what must be given
            continue
        if known.choices and value not in known.choices:
            raise InputError(one_of(prefix + name, value, known.choices))
        numbers = value if isinstance(value, list) else [value]
        finite = not any(isinstance(number, float) and not math.isfinite(number) for number in numbers)
        if not finite or (known.limit is not None and not known.limit.holds(value)):
            words = [*([] if finite else ["finite"]), *([] if known.limit is None else [known.limit.words])]
            null = ", or null" if known.optional and "null" not in words[-1] else ""
            raise InputError(f"{prefix}{name}={value} must be {' and '.join(words)}{null}")


def flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names; empty ones are left out."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def is_under(name: str, groups: Iterable[str]) -> bool:
    """Whether a dotted name is one of the groups, or in one."""
    return any(name == group or name.startswith(f"{group}.") for group in groups)


def one_of(name: str, value: str, options: Iterable[str]) -> str:
    """The one line about a choice that does not exist: the nearest option and all of them."""
    options = list(options)
    near = difflib.get_close_matches(str(value), options, n=1)
    hint = f"did you mean {near[0]}? Options: " if near else "choose one of "
    return f"{name}={value} does not exist; {hint}{', '.join(options)}"
