"""The common form that every attention is read into and built from: one Linear for each of q, k, v and the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ecoformer.errors import InputError
from ecoformer.nn.bare import does_more
from ecoformer.nn.layout import full_name
from ecoformer.nn.turned import Turn, TurnedLinear, turns_of

ROLES = ("query", "key", "value", "proj")
FUSED_QKV: Mapping[str, str] = {"query": "qkv", "key": "qkv", "value": "qkv", "proj": "proj"}
SeatMaker = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class Projections:
    """What an attention layer leaves behind when it is replaced.

    `where` names the layer in messages; `key` is None where queries and keys share one projection, held as `query`;
    `parts` names the submodule of the source behind each of query, key, value and proj, `dropped` its submodules that
    have no place here; `num_prefix` tokens (class, registers) stand before those of the image, whose map is no square
    if `is_oblong`. `layer` is the layer itself, where there is one. `seat` makes of the new layer what stands in the
    old one's place; None: the new layer.
    """

    where: str
    dim: int
    num_heads: int
    query: nn.Linear
    key: nn.Linear | None
    value: nn.Linear
    proj: nn.Linear
    proj_drop: float
    parts: Mapping[str, str]
    dropped: tuple[str, ...] = ()
    layer: nn.Module | None = None
    num_prefix: int = 0
    is_oblong: bool = False
    seat: SeatMaker | None = None

    def own_keys(self, purpose: str) -> nn.Linear:
        """The key projection. Raises InputError if queries and keys share one; `purpose`: "to build MSA from"."""
        if self.key is None:
            raise InputError(
                f"{self.where}: a shared query and key projection holds no keys {purpose}: start from the MSA "
                "checkpoint"
            )
        return self.key

    def carried(self, carries: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(copied, dropped) submodules of the source when those named in `carries` are taken over.

        `carries` names projections, and submodules that have a place in the target though not here. Rows that are left
        behind in a submodule that is copied otherwise are listed as "key rows".
        """
        copied = tuple(dict.fromkeys(self.parts[role] for role in self.parts if role in carries))
        left = [role for role in self.parts if role not in carries]
        rows = [f"{role} rows" if self.parts[role] in copied else self.parts[role] for role in left]
        also = tuple(part for part in self.dropped if part in carries)
        return (*copied, *also), (*(part for part in self.dropped if part not in also), *rows)


Reader = Callable[..., Projections]
READERS: dict[type[nn.Module], Reader] = {}
_BY_NAME: dict[str, tuple[Reader, StockCall]] = {}
_CALLS: dict[type[nn.Module], StockCall] = {}


@dataclass(frozen=True)
class StockCall:
    """How a stock layer is called: how many tokens its input has, and whether it returns (output, None)."""

    tokens: Callable[[Tensor], int] = lambda x_BND: x_BND.shape[1:-1].numel()
    is_pair: bool = False


def register_reader(cls: type[nn.Module] | str, call: StockCall | None = None) -> Callable[[Reader], Reader]:
    """Teach the conversion a source class: the function takes (module, where) and returns its `Projections`.

    Args:
        cls: the class, or its full name where its library is not to be imported for it.
        call: how layers of the class are called, if not with (B, ..., D) tokens for the same.
    """

    def decorate(reader: Reader) -> Reader:
        if isinstance(cls, str):
            _BY_NAME[cls] = reader, call or StockCall()
        else:
            READERS[cls], _CALLS[cls] = reader, call or StockCall()
        return reader

    return decorate


def learn_classes(model: nn.Module) -> None:
    """Make the classes that a model has known to `READERS` where a reader was registered by name."""
    for cls in {type(module) for module in model.modules()} - READERS.keys():
        if full_name(cls) in _BY_NAME:
            READERS[cls], _CALLS[cls] = _BY_NAME[full_name(cls)]


def call_of(layer: nn.Module) -> StockCall:
    """How a layer that a reader knows, or one of ours, is called."""
    return _CALLS.get(type(layer), StockCall())


def read_projections(module: nn.Module, where: str) -> Projections:
    """The projections of an attention layer. Raises InputError naming what cannot be carried over."""
    if type(module) not in READERS:
        raise too_little(module, where)
    found = READERS[type(module)](module, where)
    return replace(found, layer=module) if found.layer is None else found


def require_plain(module: nn.Module, where: str) -> None:
    """Raise InputError where an attention layer computes more than its class and its weights say."""
    attn_drop = getattr(getattr(module, "attn_drop", None), "p", 0.0)
    if attn_drop > 0:
        raise refusal(where, f"attn_drop={attn_drop}", "create the model with attn_drop_rate=0")
    known = {"torch", "timm", "ecoformer", type(module).__module__.partition(".")[0]}
    for name, part in module.named_modules():
        cls = type(part)
        if is_parametrized(part):
            raise refusal(where, f"a parametrization of {name}", "make it permanent (remove_parametrizations)")
        if does_more(part):
            raise refusal(where, f"a hook or a forward of {name or 'its own'}", "take it away, and add it afterwards")
        # What an adapter adds, or a quantised weight holds, is not in `weight`.
        is_adapter = next(part.children(), None) is not None and cls.__module__.partition(".")[0] not in known
        is_linear = cls.forward is nn.Linear.forward or cls.__module__.startswith("ecoformer.")
        if hasattr(part, "in_features") and part.weight is None:
            raise refusal(where, f"{name}, of which an export keeps the codes alone,", "start from its checkpoint")
        if is_adapter or (hasattr(part, "in_features") and not is_linear):
            raise refusal(where, f"{name} ({full_name(cls)})", "merge or undo it, to have a torch.nn.Linear")


def too_little(module: nn.Module, where: str) -> InputError:
    """The error for a layer without queries, or of a class that nothing can read."""
    return InputError(
        f"{where}: {type(module).__name__} keeps too little to build another attention from: start from the MSA "
        "checkpoint"
    )


def refusal(where: str, what: str, remedy: str) -> InputError:
    """The error for a layer that the common form cannot hold."""
    return InputError(f"{where}: {what} cannot be carried into another attention: {remedy}, or filter this layer out")


def require_equal_widths(where: str, *widths: int) -> None:
    """Raise InputError unless a layer's input, heads and output have the same width."""
    if len(set(widths)) > 1:
        raise refusal(where, f"widths {widths} of input, heads and output", "choose a model with equal widths")


def linear_rows(source: nn.Linear, start: int, stop: int) -> nn.Linear:
    """Rows start:stop of a Linear, as a Linear of its own, trainable and turned as they are."""
    rows = linear_of(source.weight[start:stop], None if source.bias is None else source.bias[start:stop])
    turns = turns_of(source)
    of_rows = turns[start * len(turns) // source.out_features : stop * len(turns) // source.out_features]
    return _turned(trained_as(rows, source), of_rows)


def linear_from(*sources: nn.Linear) -> nn.Linear:
    """A new Linear with the rows of all sources stacked, on their device, in their dtype, trainable and turned as they
    are."""
    weight = torch.cat([s.weight.detach() for s in sources])
    biases = [s.bias.detach() for s in sources if s.bias is not None]
    assert len(biases) in (0, len(sources)), "biases in some sources only"
    return _turned(trained_as(linear_of(weight, torch.cat(biases) if biases else None), *sources), turns_of(*sources))


def _turned(linear: nn.Linear, turns: list[nn.Module]) -> nn.Linear:
    return TurnedLinear(linear, turns) if any(isinstance(turn, Turn) for turn in turns) else linear


def trained_as(linear: nn.Linear, *sources: nn.Linear | nn.Conv2d) -> nn.Linear:
    """The Linear with its weight, and apart from it its bias, trainable where one of the sources' is."""
    with torch.enable_grad():  # a low-rank layer's weight is a product
        for name, parameter in linear.named_parameters():
            parameter.requires_grad_(any(getattr(source, name).requires_grad for source in sources))
    return linear


def read_fused_qkv(module: Any, dim: int, where: str) -> Projections:
    """Projections of a layer whose `qkv` Linear stacks query, key and value rows, each `dim` of them."""
    proj_drop = getattr(getattr(module, "proj_drop", None), "p", 0.0)
    others = {"num_heads": module.num_heads, "proj": module.proj, "proj_drop": proj_drop, "parts": FUSED_QKV}
    return read_stacked(module.qkv, dim, where, **others)


def read_stacked(stacked: nn.Linear, dim: int, where: str, **others: Any) -> Projections:
    """Projections of a layer whose query, key and value rows stand in one Linear; `others` of its parts as they are."""
    query, key, value = (linear_rows(stacked, start, start + dim) for start in (0, dim, 2 * dim))
    return Projections(where=where, dim=dim, query=query, key=key, value=value, **others)


def read_separate(
    module: nn.Module, where: str, num_heads: int, parts: Mapping[str, str], proj_drop: float = 0.0
) -> Projections:
    """Projections of a layer with a Linear of its own for each of query, key, value and proj: `parts` names them."""
    linears: dict[str, Any] = {role: module.get_submodule(name) for role, name in parts.items()}
    dim = linears["query"].in_features
    return Projections(where=where, dim=dim, num_heads=num_heads, proj_drop=proj_drop, parts=parts, **linears)


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A Linear with copies of a weight and a bias, each trainable as it is."""
    out_features, in_features = weight.shape
    linear = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return linear
