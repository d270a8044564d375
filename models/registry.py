"""timm entrypoints: every PVTv2 and Twins-SVT backbone with MSA and with EcoFormer's attention."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import timm
from timm.models import register_model
from torch import nn

from ecoformer.convert import convert
from ecoformer.nn.specs import SPECS, make_spec

BACKBONES = (*(f"pvt_v2_b{size}" for size in range(6)), *(f"twins_svt_{size}" for size in ("small", "base", "large")))
KINDS = ("msa", "ecoformer")
MODEL_NAMES: list[str] = []


def _register(backbone: str, kind: str) -> None:
    options = {field.name for field in fields(SPECS[kind])}

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        spec = make_spec(kind, {key: kwargs.pop(key) for key in options & kwargs.keys()})
        assert spec is not None
        model = timm.create_model(backbone, pretrained=pretrained, **kwargs)
        convert(model, spec)
        return model

    entrypoint.__name__ = entrypoint.__qualname__ = f"{backbone}_{kind}"
    entrypoint.__doc__ = (
        f"timm's {backbone} with {kind} attention. `pretrained` loads timm's stock weights before the conversion; "
        f"spec options: {', '.join(sorted(options)) or 'none'}; the rest goes to timm."
    )
    register_model(entrypoint)
    MODEL_NAMES.append(entrypoint.__name__)


for _backbone in BACKBONES:
    for _kind in KINDS:
        _register(_backbone, _kind)
