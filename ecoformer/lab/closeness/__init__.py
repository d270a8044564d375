"""How close layers come to the attention that they replace, for models, settings and checkpoints."""

from ecoformer.lab.closeness.blocks import block_errors, quality
from ecoformer.lab.closeness.controls import ControlSpec, uniform_copy
from ecoformer.lab.closeness.distill import distill
from ecoformer.lab.closeness.sweep import measure_setting, parse_setting

__all__ = ["ControlSpec", "block_errors", "distill", "measure_setting", "parse_setting", "quality", "uniform_copy"]
