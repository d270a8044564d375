"""Another stride for the first patch embedding, so that small images keep enough tokens."""

from typing import Any

from torch import nn

from ecoformer.errors import InputError
from ecoformer.nn.layout import STOCK_STRIDE, stem_of


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
    if stride not in stem.strides:
        raise InputError(f"model.patch_stride={stride} is not possible: {stem.limit}")
    stem.set(model, stride)
    features: Any = model.feature_info
    for info in features:
        info["reduction"] = info["reduction"] * stride // STOCK_STRIDE
