"""Low-rank compression of a model's weights, whatever its attention. See docs/low_rank.md."""

from ecoformer.compress.factorize import expand, factorize, low_rank_layers, take_ranks
from ecoformer.compress.layers import LowRankConv2d, LowRankLinear
from ecoformer.compress.report import CompressionReport, LayerCompression
from ecoformer.compress.spec import LowRankSpec

__all__ = [
    "CompressionReport",
    "LayerCompression",
    "LowRankConv2d",
    "LowRankLinear",
    "LowRankSpec",
    "expand",
    "factorize",
    "low_rank_layers",
    "take_ranks",
]
