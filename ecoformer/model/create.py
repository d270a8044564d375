"""create(name, ...): the one way from a timm name to a model. What timm refuses becomes one line."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ecoformer.config.keys import one_of
from ecoformer.errors import InputError, first_line
from ecoformer.model.resize import set_patch_stride
from ecoformer.nn.inputs import known_of, takes_sequences


def create(
    name: str,
    *,
    key: str = "model.name",
    img_size: int | None = None,
    patch_stride: int | None = None,
    pretrained: bool = False,
    pretrained_key: str = "init.pretrained=true",
    device: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> nn.Module:
    """A timm model with its stock attention.

    Args:
        name: as timm knows it, our entry points and "hf-hub:" and "local-dir:" names included.
        key: what messages call the name.
        img_size: pixels, or tokens of a model of sequences (its `seq_len`); handed to timm where a model is made for
            one size. None: the model's own.
        patch_stride: of the first patch embedding, see `set_patch_stride`.
        pretrained: with timm's weights, from its cache or the hub; messages call it `pretrained_key`.
        device: "meta" builds without values, and without drawing them. None: torch's default.
        options: further arguments of timm.create_model.
    Raises:
        InputError: an unknown name, an argument that the model refuses, weights that cannot be had.
    """
    if ":" not in name and not (known_of(name) if "." in name else timm.is_model(name)):
        raise InputError(one_of(key, name, _families(name)))
    if img_size is not None and (takes_sequences(name) or has_fixed_size(name)):
        options = {"seq_len" if takes_sequences(name) else "img_size": img_size, **options}
    hub_log = logging.getLogger("huggingface_hub")  # it reports every retry of a failed download
    level = hub_log.level
    hub_log.setLevel(logging.ERROR)
    try:
        with (
            torch.device(device) if device is not None else nullcontext(),
            _SkipInitialisation() if device == "meta" else nullcontext(),
        ):
            model: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise InputError(
            f"{pretrained_key}: timm's weights of {name} are not in the local cache and cannot be downloaded: connect "
            "once, or give a checkpoint instead (in training init.checkpoint=RUN/best.pt)"
            if pretrained
            else f"{key}={name}: config.json, which says what the model is, cannot be read: connect once, or give a "
            "folder that `ecoformer hub` or timm wrote, as local-dir:FOLDER, or a name of timm's"
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(f"{key}={name} cannot be built with the arguments given: {first_line(error)}") from error
    finally:
        hub_log.setLevel(level)
    if patch_stride is not None:
        set_patch_stride(model, patch_stride)
    return model


def has_fixed_size(name: str) -> bool:
    """Whether timm makes the model for one image size."""
    known = known_of(name)
    return known is not None and bool(known.fixed_input_size)


def _families(name: str) -> list[str]:
    """The names that a message lists: those with other tags, of the same family, or that can be converted."""
    name = name.rpartition("/")[2]
    tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    return tagged or timm.list_models(f"{name.partition('_')[0]}*") or timm.list_models(["pvt_v2*", "twins*", "deit*"])


class _SkipInitialisation(TorchDispatchMode):
    """Meta tensors have no values, so writing random numbers into them is time lost: half of building a model."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        first = func._schema.arguments[0] if func._schema.arguments else None
        if first is not None and first.alias_info is not None and first.alias_info.is_write:
            return args[0]
        return func(*args, **(kwargs or {}))
