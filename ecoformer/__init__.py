"""EcoFormer on timm backbones: binary, linear attention, and an honest account of what it costs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ecoformer.errors import InputError as InputError
    from ecoformer.fit.hashes import fit_hashes as fit_hashes
    from ecoformer.kinds.distilled import DistilledSpec as DistilledSpec
    from ecoformer.kinds.ecoformer import EcoFormerSpec as EcoFormerSpec
    from ecoformer.model.convert import ConversionReport as ConversionReport
    from ecoformer.model.convert import convert as convert
    from ecoformer.model.layers import attention_layers as attention_layers
    from ecoformer.model.resize import set_patch_stride as set_patch_stride
    from ecoformer.nn.msa import MSASpec as MSASpec

__version__ = "0.1.0"


_HOME = {
    "ConversionReport": "ecoformer.model.convert",
    "DistilledSpec": "ecoformer.kinds.distilled",
    "EcoFormerSpec": "ecoformer.kinds.ecoformer",
    "InputError": "ecoformer.errors",
    "MSASpec": "ecoformer.nn.msa",
    "attention_layers": "ecoformer.model.layers",
    "convert": "ecoformer.model.convert",
    "fit_hashes": "ecoformer.fit.hashes",
    "set_patch_stride": "ecoformer.model.resize",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Names of other modules are loaded when first asked for: nothing waits for torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
