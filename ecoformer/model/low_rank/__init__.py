"""Low-rank compression of a model's weights, whatever its attention. See docs/low_rank.md."""

from ecoformer.model.low_rank.compression_report import CompressionReport, LayerCompression
from ecoformer.model.low_rank.factorize import expand, factorize, low_rank_layers, ranks_in, take_ranks
from ecoformer.model.low_rank.layers import LowRankConv2d, LowRankLinear
from ecoformer.model.low_rank.spec import LowRankSpec

__all__ = [
    "CompressionReport",
    "LayerCompression",
    "LowRankConv2d",
    "LowRankLinear",
    "LowRankSpec",
    "expand",
    "factorize",
    "low_rank_layers",
    "ranks_in",
    "take_ranks",
]
