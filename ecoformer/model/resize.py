"""Models for other images: another size, window or patch, as timm resizes; other channels; a stride for small ones."""

import sys
from collections.abc import Mapping
from typing import Any

from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ecoformer.errors import InputError, is_whole
from ecoformer.nn.inputs import RGB, first_convolution
from ecoformer.nn.layout import stem_of

_SIZED = ("pos_embed", "patch_embed.proj.weight", "relative_position_bias_table")  # how their keys end


def fit_sizes(state: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict with what depends on sizes made to fit `model`, and a note on it.

    timm's own `checkpoint_filter_fn` of the model does it, and `resample_abs_pos_embed` where there is none. What
    neither can resize is left as it is.
    """
    own, out = model.state_dict(), dict(state)
    wrong = [key for key in own if key.endswith(_SIZED) and key in out and out[key].shape != own[key].shape]
    if not wrong:
        return out, []
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is not None:
        sized = filter_fn({key: value for key, value in out.items() if key.endswith(_SIZED)}, model)
        out |= {key: sized[key] for key in wrong if key in sized}
    if "pos_embed" in wrong and out["pos_embed"].shape != own["pos_embed"].shape:
        out |= _absolute(out["pos_embed"], own["pos_embed"], model)
    done = [key for key in wrong if out[key].shape == own[key].shape]
    if not done:
        return out, []
    first = f"{done[0]}, {_by(state[done[0]])} -> {_by(own[done[0]])}"
    return out, [f"{len(done)} position or patch embeddings resized as timm does ({first})"]


def set_in_chans(model: nn.Module, in_chans: int) -> None:
    """Make a model for RGB take another number of channels, in place, with timm's weights of its first convolution.

    Raises:
        InputError: a model for another number, or without a convolution.
    """
    stem = first_convolution(model)
    if stem is None or stem.in_channels != RGB:
        raise InputError(f"model.in_chans={in_chans}: {type(model).__name__} was not made for {RGB} channels: leave it")
    stem.in_channels = in_chans
    module: Any
    for module in model.modules():
        if getattr(module, "in_chans", None) == RGB:
            module.in_chans = in_chans
    stem.weight = nn.Parameter(adapt_input_conv(in_chans, stem.weight.detach()))


def set_patch_stride(model: nn.Module, stride: int) -> None:
    """Change the stride of a PVTv2's or Twins' first patch embedding in place.

    PVTv2's 7 x 7 convolution takes strides 1 to 6. Twins' 4 x 4 convolution takes 4, and 2 with one pixel of padding
    so that the map stays image / stride. A ViT takes `patch_size` when it is created. Raises InputError otherwise.
    """
    stem = stem_of(model)
    if stem is None:
        raise InputError(
            f"model.patch_stride={stride}: {type(model).__name__} has no such stride; for a ViT set "
            "model.kwargs.patch_size instead"
        )
    if not is_whole(stride) or stride not in stem.strides:
        raise InputError(f"model.patch_stride={stride!r} is not possible: {stem.limit}")
    embedding: Any = first_convolution(model)
    before = embedding.stride[0]
    stem.set(model, stride)
    features: Any = model.feature_info
    for info in features:
        info["reduction"] = info["reduction"] * stride // before


def _absolute(held: Tensor, wanted: Tensor, model: nn.Module) -> dict[str, Tensor]:
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if grid is None or held.ndim != 3 or held.shape[-1] != wanted.shape[-1]:
        return {}
    prefix = wanted.shape[1] - grid[0] * grid[1]
    return {"pos_embed": resample_abs_pos_embed(held, list(grid), num_prefix_tokens=prefix)}


def _by(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
