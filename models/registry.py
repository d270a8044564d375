"""timm entrypoints: every PVTv2 and Twins-SVT backbone with every registered kind of attention."""

from dataclasses import fields
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from ecoformer.kinds import SPECS, make_spec
from ecoformer.model.convert import convert
from ecoformer.nn.specs import on_each_kind

BACKBONES = (*(f"pvt_v2_b{size}" for size in range(6)), *(f"twins_svt_{size}" for size in ("small", "base", "large")))
MODEL_NAMES: list[str] = []


def _register(backbone: str, kind: str) -> None:
    options = {field.name for field in fields(SPECS[kind])}

    def entrypoint(pretrained: bool = False, img_size: int | None = None, **kwargs: Any) -> nn.Module:
        spec = make_spec(kind, {key: kwargs.pop(key) for key in options & kwargs.keys()})
        assert spec is not None
        model = timm.create_model(backbone, pretrained=pretrained, **kwargs)
        convert(model, spec, img_size=img_size)
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = f"{backbone}_{kind}"
    entrypoint.__doc__ = (
        f"timm's {backbone} with {kind} attention. `pretrained` loads timm's stock weights before the conversion; "
        "`img_size` checks the attention against the tokens of that size, and fits it to them where it has to be; "
        f"spec options: {', '.join(sorted(options)) or 'none'}; the rest goes to timm."
    )
    register_model(entrypoint)
    MODEL_NAMES.append(entrypoint.__name__)


def _register_kind(kind: str) -> None:
    for backbone in BACKBONES:
        if f"{backbone}_{kind}" not in MODEL_NAMES:  # a module may be imported again
            _register(backbone, kind)


on_each_kind(_register_kind)
