"""Dimensions of a PVTv2, Twins or plain ViT, read from the shapes of its weights, as arguments of timm.create_model."""

import math
import re
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.model.layers import attention_layers
from ecoformer.nn.inputs import RGB

_BLOCK = re.compile(r"^(?:stages\.(\d+)\.blocks|blocks\.(\d+))\.(\d+)\.(.+)$")


def num_classes_of(tensors: Mapping[str, Tensor], name: str) -> int:
    """Outputs of the classifier of a timm model; 0 where the weights have none."""
    parts = getattr(timm.get_pretrained_cfg(name), "classifier", None) or "head"
    head = tensors.get(f"{parts if isinstance(parts, str) else parts[0]}.weight")
    return 0 if head is None else len(head)


def in_chans_of(tensors: Mapping[str, Tensor]) -> int:
    """Channels of the images that weights of a timm model are for; 3 where they have no first convolution."""
    first = tensors.get("patch_embed.proj.weight", tensors.get("patch_embeds.0.proj.weight"))
    return RGB if first is None or first.dim() != 4 else first.shape[1]


def vit_img_size(tensors: Mapping[str, Tensor]) -> int:
    """Pixels of the square images that a plain ViT's position embedding is for; Twins and PVTv2 have none."""
    patches = tensors["patch_embed.proj.weight"].shape[-1]
    # Up to four class and register tokens stand before those of the image and fill no further row.
    return math.isqrt(tensors["pos_embed"].shape[1]) * patches


def dims_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """embed_dims, depths, mlp_ratios, qkv_bias where the shapes say, num_heads and sr_ratios per stage where they do.

    `num_heads` follows from hash functions alone, and a ratio from a subsampling convolution; None stands for a
    stage that does not show it. Empty for weights without stages (a plain ViT).
    """
    stages: dict[int, dict[str, Tensor]] = {}
    blocks: dict[int, set[int]] = {}
    for key, value in tensors.items():
        found = _BLOCK.match(key)
        if found and (found[1] or found[2]):
            stage = int(found[1] or found[2])
            stages.setdefault(stage, {}).setdefault(found[4], value)
            blocks.setdefault(stage, set()).add(int(found[3]))
    # A plain ViT's "blocks.0.norm1.weight" has no block number to match.
    if not stages or any({"norm1.weight", "mlp.fc1.weight"} - parts.keys() for parts in stages.values()):
        return {}
    order = sorted(stages)
    widths = [len(stages[stage]["norm1.weight"]) for stage in order]
    hidden = [len(stages[stage]["mlp.fc1.weight"]) for stage in order]
    codes = [stages[stage].get("attn.hash.A") for stage in order]
    reducers = [stages[stage].get("attn.sr.weight") for stage in order]
    return {
        "embed_dims": widths,
        "depths": [len(blocks[stage]) for stage in order],
        "mlp_ratios": [mlp_ratio(size, width) for size, width in zip(hidden, widths, strict=True)],
        "num_heads": [None if code is None else len(code) for code in codes],
        "sr_ratios": [None if reducer is None else reducer.shape[-1] for reducer in reducers],
    }


def arguments(
    tensors: Mapping[str, Tensor], default: nn.Module, num_heads: list[int] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """What to pass to timm.create_model beside the name of `default` (a stock model) to get the weights' shapes.

    Args:
        num_heads: per stage, where it is known from elsewhere.
    Returns:
        Only what differs from `default`, and notes on what the shapes do not say and was taken from it.
    Raises:
        InputError: `num_heads` is for another number of stages.
    """
    found, own = dims_of(tensors), dims_of(default.state_dict())
    if not found or not own:
        return _plain_arguments(tensors, default, num_heads)
    if num_heads is not None and len(num_heads) != len(found["embed_dims"]):
        raise InputError(
            f"{num_heads} are heads of {len(num_heads)} stages, the weights have {len(found['embed_dims'])}"
        )
    heads: dict[int, int] = {}
    for layer in attention_layers(default):
        heads.setdefault(layer.stage, layer.module.num_heads)  # type: ignore[arg-type]
    own_heads = [heads[stage] for stage in sorted(heads)]
    notes = []
    wanted = list(num_heads or found["num_heads"])
    unknown = [stage for stage, value in enumerate(wanted) if value is None and stage < len(own_heads)]
    for stage in unknown:
        wanted[stage] = own_heads[stage]
    if unknown and (found["embed_dims"], found["depths"]) != (own["embed_dims"], own["depths"]):
        notes.append(
            f"the weights do not show the number of heads in stage {', '.join(str(s + 1) for s in unknown)}: "
            f"{', '.join(str(wanted[s]) for s in unknown)} taken from the named model (--heads sets others)"
        )
    options: dict[str, Any] = {
        key: found[key] for key in ("embed_dims", "depths", "mlp_ratios") if found[key] != own[key]
    }
    if wanted != own_heads:
        options["num_heads"] = wanted
    # A stage without a subsampling convolution may have lost it to a conversion: only what is seen is compared.
    ratios = [new or old or 1 for new, old in zip(found["sr_ratios"], own["sr_ratios"], strict=False)]
    if ratios != [old or 1 for old in own["sr_ratios"]] and len(ratios) == len(wanted):
        options["sr_ratios"] = ratios
    return options, notes


def _plain_arguments(
    tensors: Mapping[str, Tensor], default: nn.Module, num_heads: list[int] | None
) -> tuple[dict[str, Any], list[str]]:
    """`arguments` of a plain ViT, whose shapes never show its heads."""
    found, own = _plain_dims(tensors), _plain_dims(default.state_dict())
    layers = attention_layers(default)
    if not found or not own or not layers:
        return {}, []
    if num_heads is not None and len(num_heads) != 1:
        raise InputError(f"{num_heads} are heads of {len(num_heads)} stages, a plain ViT has one: give one number")
    options = {key: value for key, value in found.items() if value != own[key]}
    (named,) = {layer.module.num_heads for layer in layers}
    heads, width = named if num_heads is None else num_heads[0], found["embed_dim"]
    if width % heads:
        raise InputError(f"{width} channels do not divide into {heads} heads: give another number as --heads")
    if num_heads is None:
        differs = "embed_dim" in options
        note = f"the weights do not show the number of heads: {named} taken from the named model (--heads sets another)"
        return options, [note] if differs else []
    return options | ({} if heads == named else {"num_heads": heads}), []


def _plain_dims(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """embed_dim, depth, mlp_ratio and, if square, patch_size of a plain ViT; empty for other weights."""
    names = ("blocks.0.norm1", "blocks.0.mlp.fc1", "patch_embed.proj")
    norm, hidden, patches = (tensors.get(f"{name}.weight") for name in names)
    if norm is None or hidden is None or patches is None:
        return {}
    depth = sum(1 for key in tensors if re.fullmatch(r"blocks\.\d+\.norm1\.weight", key))
    found = {"embed_dim": len(norm), "depth": depth, "mlp_ratio": mlp_ratio(len(hidden), len(norm))}
    height, width = patches.shape[-2:]
    return found | ({"patch_size": width} if height == width else {})


def mlp_ratio(hidden: int, width: int) -> float | int:
    """What times a width, rounded down as timm does, is the hidden width."""
    ratio = hidden / width
    if ratio == int(ratio):
        return int(ratio)
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
