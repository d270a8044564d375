"""Any timm model with timm's weights, on data of ours: which of its outputs are the data's classes, how it sees images.

Shapes: B batch, K classes of the data, S pixels.
"""

from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn

from ecoformer.data import DataModule
from ecoformer.data.identity import KnownClasses, on_classes
from ecoformer.data.loader import per_channel
from ecoformer.errors import InputError
from ecoformer.model.create import create


class Renormalised(nn.Module):
    """A model on images that were normalised for another one: (B, C, S, S) -> (B, K)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, seen: tuple[Any, Any], wanted: tuple[Any, Any]) -> None:
        super().__init__()
        self.model = model
        (mean, std), (own_mean, own_std) = (torch.tensor([*pair]).view(2, -1, 1, 1) for pair in (seen, wanted))
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, images_BCSS: Tensor) -> Tensor:
        return self.model(images_BCSS * self.scale + self.shift)


def class_names(model: Any) -> list[str]:
    """What the outputs of a timm model stand for: its own labels, ImageNet's synsets by their number, else numbers."""
    own = model.pretrained_cfg.get("label_names")
    if own is not None:
        return list(own)
    subset = infer_imagenet_subset(model)
    return [str(index) for index in range(model.num_classes)] if subset is None else ImageNetInfo(subset).label_names()


def timm_on_classes(model: Any, name: str, data: DataModule, where: str) -> nn.Module:
    """`on_classes` of a timm model.

    Raises InputError: the data are no images, or have classes that the model does not know.
    """
    if data.vocab_size is not None:
        raise InputError(f"timm's {name} takes images, data.name={data.name} are sequences of ids: take data of images")
    return on_classes(model, KnownClasses(class_names(model), f"timm's {name}"), data.class_names, where)


def timm_teacher(name: str, data: DataModule, where: str) -> nn.Module:
    """A timm model as the teacher of a run on `data`: (B, C, S, S), normalised as the run does, to logits (B, K).

    Raises InputError: an unknown name, weights that cannot be had, classes that it does not know.
    """
    key = "distill.model"
    channels: dict[str, Any] = {} if (in_chans := len(data.mean)) == 3 else {"in_chans": in_chans}
    weights = f"{key}={name}"
    model = create(name, key=key, img_size=data.img_size, pretrained=True, pretrained_key=weights, options=channels)
    theirs = resolve_model_data_config(model)
    chosen = timm_on_classes(model, name, data, where)
    seen = (per_channel(theirs["mean"], in_chans), per_channel(theirs["std"], in_chans))
    return Renormalised(chosen, (data.mean, data.std), seen)
