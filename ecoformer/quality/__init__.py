"""What a hash is worth: replaced attention against the softmax attention it stands for. See docs/hash_learning.md."""

from ecoformer.quality.blocks import BlockQuality, quality, uniform_attention
from ecoformer.quality.sweep import Setting, measure, parse_setting

__all__ = ["BlockQuality", "Setting", "measure", "parse_setting", "quality", "uniform_attention"]
