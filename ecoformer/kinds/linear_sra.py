"""PVTv2's linear spatial-reduction attention: every token attends to the map pooled to a fixed size.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, P prefix tokens, M pooled tokens plus P.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.pvt_v2 import Attention as PvtAttention
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.base import ReplacementAttention, attention_kind
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.nn.projections import Projections, refusal
from ecoformer.nn.specs import AttentionSpec
from ecoformer.nn.turned import turns_of


@dataclass(frozen=True)
class LinearSRASpec(AttentionSpec):
    """Keys and values from the map after average pooling, a 1x1 convolution, a norm and GELU.

    Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", 2022, section 3.2; the attention of
    timm's pvt_v2_b2_li. A map below the pooled size is stretched to it, as there.

    Args:
        pool_size: height and width of the pooled map.
    """

    name = "linear_sra"

    pool_size: int = 7

    def __post_init__(self) -> None:
        self.require_whole(1, "pool_size")

    def is_met_by(self, module: nn.Module) -> bool:
        if isinstance(module, PvtAttention):
            return module.pool is not None and module.pool.output_size == self.pool_size
        return isinstance(module, LinearSRAAttention) and module.spec == self


@attention_kind(LinearSRASpec)
class LinearSRAAttention(ReplacementAttention):
    """softmax attention of all tokens to pooled ones; parts and state dict are those of timm's layer.

    Prefix tokens (class, registers) are no part of a map: they go through the convolution, norm and GELU as they are
    and stand before the pooled tokens. `forward` needs the map's height and width, as PVTv2 and Twins pass them;
    without them, as in a ViT, the map has to be square.

    The convolution and the norm carry over from timm's linear SRA, and from SRA, whose r x r kernel is summed: on
    windows of equal tokens that is the same. Otherwise the convolution starts as the identity.
    """

    parts: Mapping[str, str] = {"query": "q", "key": "kv", "value": "kv", "proj": "proj"}
    shows_weights = False
    spec: LinearSRASpec
    q: nn.Linear
    kv: nn.Linear

    def add_parts(self, source: Projections | None) -> None:
        self.num_prefix = 0 if source is None else source.num_prefix
        if source is not None and source.is_oblong:
            raise refusal(source.where, "a map of tokens that is no square", "use square images")
        if source is not None and any(getattr(turn, "rotation", None) for turn in turns_of(self.kv)):
            raise refusal(source.where, "a rotation of keys (RoPE), whose places pooling takes", "choose another kind")
        self.sr, self.norm = _reduction(self.proj.weight, source)
        if source is not None and "sr" in source.dropped:
            self.also_carried = ("sr", "norm")
        else:
            self.new_parts = ("sr", "norm")

    def attention_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """Raises InputError without `feat_size` if the map is no square. There is never a mask: a map has no gaps."""
        pooled_BMD = self.pooled(x_BND, self._map_size(x_BND.shape[1]) if feat_size is None else feat_size)
        key_BMD, value_BMD = self.kv(pooled_BMD).chunk(2, dim=-1)
        q_BHNC, k_BHMC, v_BHMC = (split_heads(part, self.num_heads) for part in (self.q(x_BND), key_BMD, value_BMD))
        return join_heads(F.scaled_dot_product_attention(q_BHNC, k_BHMC, v_BHMC))

    def pooled(self, x_BND: Tensor, map_size: Any) -> Tensor:
        """What keys and values are made of, (B, M, D): the prefix tokens, then the pooled map row by row."""
        height, width = map_size
        x_BDN = x_BND.transpose(1, 2)
        map_BDYX = x_BDN[:, :, self.num_prefix :].unflatten(2, (height, width))
        pooled_BDM = F.adaptive_avg_pool2d(map_BDYX, self.spec.pool_size).flatten(2)
        if self.num_prefix:
            pooled_BDM = torch.cat([x_BDN[:, :, : self.num_prefix], pooled_BDM], dim=2)
        reduced_BDM = self.sr(pooled_BDM.unsqueeze(-1)).flatten(2)
        return F.gelu(self.norm(reduced_BDM.transpose(1, 2)))

    def _map_size(self, num_tokens: int) -> tuple[int, int]:
        of_image = num_tokens - self.num_prefix
        side = math.isqrt(of_image)
        if side * side != of_image:
            raise InputError(
                f"linear_sra pools a map, and {of_image} image tokens are no square one: use square images, or a model "
                "that tells its attention the map's size (PVTv2, Twins)"
            )
        return side, side

    def paper_core_ops(self, num_tokens: int) -> tuple[int, int]:
        """MSA's count with M keys, 2 N M D and H N M for the softmax; the pooling adds (N - P) D and divides M' D.

        M' = M - P are the pooled tokens. Convolution, norm and projections are modules and counted as such.
        """
        num_pooled = self.spec.pool_size**2
        num_keys = num_pooled + self.num_prefix
        products = 2 * num_tokens * num_keys * self.dim
        muls = products + self.num_heads * num_tokens * num_keys + num_pooled * self.dim
        return muls, products + (num_tokens - self.num_prefix) * self.dim


def _reduction(like: Tensor, source: Projections | None) -> tuple[nn.Conv2d, nn.LayerNorm]:
    """The 1x1 convolution and the norm, from those of the source where it has them."""
    factory: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    sr = nn.Conv2d(len(like), len(like), kernel_size=1, **factory)
    assert sr.bias is not None
    with torch.no_grad():
        if source is not None and "sr" in source.dropped:
            assert source.layer is not None
            old: Any = source.layer.get_submodule("sr")  # a low-rank one too
            sr.weight.copy_(old.weight.sum(dim=(2, 3), keepdim=True))
            sr.bias.copy_(old.bias)
            norm = copy.deepcopy(source.layer.get_submodule("norm"))
            assert isinstance(norm, nn.LayerNorm)
            return sr, norm
        nn.init.dirac_(sr.weight)
        sr.bias.zero_()
    return sr, nn.LayerNorm(len(like), **factory)
