"""Low-rank compression of a model's weights, whatever its attention. See docs/low_rank.md."""

from ecoformer.model.low_rank.compression_report import CompressionReport as CompressionReport
from ecoformer.model.low_rank.compression_report import LayerCompression as LayerCompression
from ecoformer.model.low_rank.factorize import expand as expand
from ecoformer.model.low_rank.factorize import factorize as factorize
from ecoformer.model.low_rank.factorize import low_rank_layers as low_rank_layers
from ecoformer.model.low_rank.factorize import ranks_in as ranks_in
from ecoformer.model.low_rank.factorize import take_ranks as take_ranks
from ecoformer.model.low_rank.layers import LowRankConv2d as LowRankConv2d
from ecoformer.model.low_rank.layers import LowRankLinear as LowRankLinear
from ecoformer.model.low_rank.spec import LowRankSpec as LowRankSpec
