"""Which parts of a model a config chooses: stage numbers and name patterns, as filters of `convert` and `factorize`."""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import filter as matching
from typing import Any

from torch import nn

from ecoformer.config.schema import CompressConfig
from ecoformer.errors import InputError
from ecoformer.model.layers import FilterFn, attention_layers


def chosen(items: Iterable[Any], names_of: Callable[[Any], Iterable[str]], key: str, others: str) -> set[str]:
    """The names that the items stand for. Raises InputError, "KEY: ITEM matches no OTHERS", for one without any."""
    names: set[str] = set()
    for item in items:
        found = set(names_of(item))
        if not found:
            raise InputError(f"{key}: {item!r} matches no {others}")
        names |= found
    return names


def compress_filter(model: nn.Module, compress: CompressConfig) -> FilterFn | None:
    """factorize's filter for `compress.layers`, fnmatch patterns of module names; None: default.

    Raises InputError for a pattern that matches no Linear layer or convolution.
    """
    if compress.layers is None:
        return None
    held = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    others = f"Linear layer or convolution; there are names such as {', '.join(held[:3]) or 'none'}"
    names = chosen(compress.layers, lambda pattern: matching(held, pattern), "compress.layers", others)
    return lambda module, name: name in names


def layer_filter(model: nn.Module, attention: Mapping[str, Any]) -> FilterFn | None:
    """convert's filter for `attention.layers`: stage numbers and fnmatch patterns of module names; None: default.

    Raises InputError for a number or pattern that matches no attention layer.
    """
    if attention.get("layers") is None:
        return None
    layers = attention_layers(model)
    stages, held = max((layer.num_stages for layer in layers), default=0), [layer.name for layer in layers]

    def names_of(item: int | str) -> list[str]:
        if isinstance(item, int):
            return [layer.name for layer in layers if layer.stage == item]
        return matching(held, item)

    others = f"attention layer; there are stages 1 to {stages} and names such as {held[0] if held else 'none'}"
    names = chosen(attention["layers"], names_of, "attention.layers", others)
    return lambda module, name: name in names
