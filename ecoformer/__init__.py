"""EcoFormer on timm backbones: binary, linear attention, and an honest account of what it costs."""

from ecoformer.convert import ConversionReport, convert
from ecoformer.errors import InputError
from ecoformer.layers import attention_layers
from ecoformer.nn import EcoFormerSpec, MSASpec, fit_hashes
from ecoformer.patch_stride import set_patch_stride

__version__ = "0.1.0"

__all__ = [
    "ConversionReport",
    "EcoFormerSpec",
    "InputError",
    "MSASpec",
    "attention_layers",
    "convert",
    "fit_hashes",
    "set_patch_stride",
]
