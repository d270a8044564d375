"""One operation as it was dispatched: its arguments by name, its results, and what its operands can hold."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from math import prod
from typing import Any

from torch import Tensor

from ecoformer.energy.values import Values, ValueTracker


@dataclass
class Call:
    """`name` is the operation without namespace, overload and the underscore of in-place variants: "add"."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    tracker: ValueTracker

    @property
    def full_name(self) -> str:
        """As the ledger lists it, for example "aten.add.Tensor"."""
        return str(self.func)

    @cached_property
    def name(self) -> str:
        return short_name(self.func)

    def arg(self, name: str, default: Any = None) -> Any:
        """The argument called `name` in the operation's schema; its schema default, or `default`, if not given."""
        found = _parameters(self.func).get(name)
        if found is None:
            return default
        position, parameter = found
        if position < len(self.args) and not parameter.kwarg_only:
            return self.args[position]
        if name in self.kwargs:
            return self.kwargs[name]
        return parameter.default_value if parameter.has_default_value() else default

    def values(self, operand: Any) -> Values:
        return self.tracker.get(operand)

    @cached_property
    def inputs(self) -> list[Tensor]:
        return list(_tensors([*self.args, *self.kwargs.values()]))

    @cached_property
    def is_complex(self) -> bool:
        return any(x.is_complex() for x in [*self.inputs, *self.outputs])

    @cached_property
    def outputs(self) -> list[Tensor]:
        return list(_tensors([self.out]))

    @cached_property
    def written(self) -> list[Tensor]:
        """Arguments that the operation writes into."""
        return list(_tensors([self.arg(name) for name in _written_parameters(self.func)]))

    @property
    def elements(self) -> int:
        return self.outputs[0].numel()

    @property
    def writes_only(self) -> frozenset[int]:
        """Identities of tensors that are overwritten unread: `out=` arguments."""
        outs = [p.name for p in self.func._schema.arguments if p.is_out]
        return frozenset(id(self.kwargs[name]) for name in outs if name in self.kwargs)


@cache
def _parameters(func: Any) -> dict[str, tuple[int, Any]]:
    """What the schema of an operation says of each argument, and where it stands."""
    return {parameter.name: (position, parameter) for position, parameter in enumerate(func._schema.arguments)}


@cache
def _written_parameters(func: Any) -> list[str]:
    return [p.name for p in func._schema.arguments if p.alias_info is not None and p.alias_info.is_write]


@cache
def short_name(func: Any) -> str:
    """ "add" for aten.add_.Tensor; a namespace other than aten stays: "mylib::fold"."""
    namespace, _, name = func._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if namespace == "aten" else f"{namespace}::{name}"


def stored_bytes(x: Tensor) -> int:
    """Bytes of the distinct elements behind a tensor: broadcast dimensions (stride 0) hold one."""
    stored = prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride != 0 or size == 0)
    return stored * x.element_size()


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)
