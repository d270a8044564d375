"""Which layers a config chooses: stage numbers and name patterns, as filters of `convert` and `factorize`."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ecoformer.config.schema import CompressConfig
from ecoformer.errors import InputError
from ecoformer.model.layers import FilterFn, attention_layers


def compress_filter(model: nn.Module, compress: CompressConfig) -> FilterFn | None:
    """factorize's filter for `compress.layers`, fnmatch patterns of module names; None: default.

    Raises InputError for a pattern that matches no Linear layer or convolution.
    """
    if compress.layers is None:
        return None
    candidates = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    names: set[str] = set()
    for pattern in compress.layers:
        found = {name for name in candidates if fnmatchcase(name, pattern)}
        if not found:
            raise InputError(
                f"compress.layers: {pattern!r} matches no Linear layer or convolution; there are names such as "
                f"{', '.join(candidates[:3]) or 'none'}"
            )
        names |= found
    return lambda module, name: name in names


def layer_filter(model: nn.Module, attention: Mapping[str, Any]) -> FilterFn | None:
    """convert's filter for `attention.layers`: stage numbers and fnmatch patterns of module names; None: default.

    Raises InputError for a number or pattern that matches no attention layer.
    """
    chosen = attention.get("layers")
    if chosen is None:
        return None
    layers = attention_layers(model)
    names: set[str] = set()
    for item in chosen:
        found = {
            layer.name
            for layer in layers
            if (layer.stage == item if isinstance(item, int) else fnmatchcase(layer.name, item))
        }
        if not found:
            stages = max((layer.num_stages for layer in layers), default=0)
            raise InputError(
                f"attention.layers: {item!r} matches no attention layer; there are stages 1 to {stages} and names "
                f"such as {layers[0].name if layers else 'none'}"
            )
        names |= found
    return lambda module, name: name in names
