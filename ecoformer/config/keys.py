"""The keys of a schema by their dotted names: what each takes, and the field that defines it."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: the types that it may have (more than one where null is allowed) and its field."""

    types: tuple[Any, ...]
    field: dataclasses.Field[Any]

    @property
    def optional(self) -> bool:
        return type(None) in self.types

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
            keys[prefix + field.name] = Key(options, field)
            if dataclasses.is_dataclass(hint):
                visit(typing.cast(type, hint), f"{prefix}{field.name}.")

    visit(schema, "")
    return keys
