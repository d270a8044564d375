"""What conversion must know of a backbone beside its attention: stages, prefix tokens, the stride of its stem.

A class is registered under its full name, so that no library is imported for it; what is not registered is one stage,
without a stride that could be changed.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

STOCK_STRIDE = 4

Stages = Callable[[Any], Iterable[nn.Module]]


@dataclass(frozen=True)
class Stem:
    """A first patch embedding whose stride may change: which strides it takes, in words too, and what sets one."""

    strides: Collection[int]
    limit: str
    set: Callable[[Any, int], None]


def _set_pvt(model: Any, stride: int) -> None:
    model.patch_embed.proj.stride = (stride, stride)


def _set_twins(model: Any, stride: int) -> None:
    embed = model.patch_embeds[0]
    embed.proj.stride = embed.patch_size = (stride, stride)
    embed.proj.padding = ((STOCK_STRIDE - stride) // 2,) * 2


STAGES: dict[str, Stages] = {
    "timm.models.pvt_v2.PyramidVisionTransformerStage": lambda stage: [stage],
    "timm.models.twins.Twins": lambda model: model.blocks,
    "timm.models.nest.NestLevel": lambda level: [level],
    "timm.models.davit.DaVitStage": lambda stage: [stage],
    "timm.models.fastvit.FastVitStage": lambda stage: [stage],
    "timm.models.metaformer.MetaFormerStage": lambda stage: [stage],
    "timm.models.visformer.Visformer": lambda model: [model.stage1, model.stage2, model.stage3],
    "segmentation_models_pytorch.encoders.mix_transformer.MixVisionTransformerEncoder": lambda model: [
        *(model.block1, model.block2, model.block3, model.block4)
    ],
    "transformers.models.segformer.modeling_segformer.SegformerStage": lambda stage: [stage],
}
"""The stages that a module of a class holds, or is; those of a model are counted in the order of its modules."""

STEMS: dict[str, Stem] = {
    "timm.models.pvt_v2.PyramidVisionTransformerV2": Stem(range(1, 7), "PVTv2 takes 1 to 6", _set_pvt),
    "timm.models.twins.Twins": Stem((2, 4), "Twins takes 2 or 4", _set_twins),
}

PREFIX_TOKENS: dict[str, int] = {"torchvision.models.vision_transformer.VisionTransformer": 1}
"""Class and register tokens of models that do not say so as timm's do, by `num_prefix_tokens`."""


def full_name(cls: type) -> str:
    """As the tables here name a class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def stages_of(model: nn.Module) -> list[set[nn.Module]]:
    """The modules of each stage, in order; empty: the model is one stage."""
    found = (stage for module in model.modules() for stage in _entry(STAGES, module, lambda _: ())(module))
    return [set(stage.modules()) for stage in found]


def stem_of(model: nn.Module) -> Stem | None:
    """The stem of a model that may have another stride."""
    return _entry(STEMS, model, None)


def prefix_tokens(model: nn.Module) -> int:
    """How many tokens (class, registers) stand before those of the image."""
    for module in model.modules():
        count = getattr(module, "num_prefix_tokens", None)
        count = _entry(PREFIX_TOKENS, module, None) if count is None else count
        if isinstance(count, int):
            return count
    return 0


def is_oblong(model: nn.Module) -> bool:
    """Whether a ViT was made for a map of patches that is no square: its layers are not told, 4 x 9 may be 6 x 6."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return grid is not None and grid[0] != grid[1]


def _entry(table: dict[str, Any], module: nn.Module, default: Any) -> Any:
    return next((table[name] for cls in type(module).__mro__ if (name := full_name(cls)) in table), default)
