"""How close layers come to the attention that they replace, for models, settings and checkpoints."""

from ecoformer.lab.closeness.blocks import BlockQuality, quality, uniform_attention
from ecoformer.lab.closeness.controls import ControlSpec
from ecoformer.lab.closeness.distill import BlockError, Distilled, block_errors, distill
from ecoformer.lab.closeness.sweep import Setting, measure, parse_setting

__all__ = [
    "BlockError",
    "BlockQuality",
    "ControlSpec",
    "Distilled",
    "Setting",
    "block_errors",
    "distill",
    "measure",
    "parse_setting",
    "quality",
    "uniform_attention",
]
