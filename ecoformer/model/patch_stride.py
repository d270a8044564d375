"""Another stride for the first patch embedding, so that small images keep enough tokens."""

from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.twins import PatchEmbed, Twins
from torch import nn

from ecoformer.errors import InputError

_STOCK_STRIDE = 4


def set_patch_stride(model: nn.Module, stride: int) -> None:
    """Change the stride of a PVTv2's or Twins' first patch embedding in place.

    PVTv2's 7 x 7 convolution takes strides 1 to 6. Twins' 4 x 4 convolution takes 4, and 2 with one pixel of padding
    so that the map stays image / stride. A ViT takes `patch_size` when it is created. Raises InputError otherwise.
    """
    if isinstance(model, PyramidVisionTransformerV2):
        _require(stride, range(1, 7), "PVTv2 takes 1 to 6")
        model.patch_embed.proj.stride = (stride, stride)
    elif isinstance(model, Twins):
        _require(stride, (2, 4), "Twins takes 2 or 4")
        embed = model.patch_embeds[0]
        assert isinstance(embed, PatchEmbed)
        embed.proj.stride = (stride, stride)
        embed.proj.padding = ((_STOCK_STRIDE - stride) // 2,) * 2
        embed.patch_size = (stride, stride)
    else:
        raise InputError(
            f"model.patch_stride={stride}: {type(model).__name__} has no such stride; for a ViT set "
            "model.kwargs.patch_size instead"
        )
    for info in model.feature_info:
        info["reduction"] = info["reduction"] * stride // _STOCK_STRIDE


def _require(stride: int, allowed: range | tuple[int, ...], limit: str) -> None:
    if stride not in allowed:
        raise InputError(f"model.patch_stride={stride} is not possible: {limit}")
